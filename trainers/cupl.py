from dataclasses import dataclass, field
from typing import Literal

from dassl.engine import TRAINER_REGISTRY

from common.errors import UsageError
from common.names import plain

from .base.settings import MethodSettings
from .base.teacher import EIGHTY
from .zsclip import TextsMethod


@dataclass(frozen=True)
class CuPLSettings(MethodSettings):
    """TEMPLATES count beside the sentences of a class, with {} for its name. `eighty` are CLIP's
    for ImageNet.
    """

    TEMPLATES: list[str] | Literal["eighty"] = field(default_factory=list)

    def check(self):
        if self.TEMPLATES != "eighty" and not all("{}" in template for template in self.TEMPLATES):
            raise UsageError(f"TEMPLATES is {self.TEMPLATES}", "put {} where the class name goes")


@TRAINER_REGISTRY.register()
class CuPL(TextsMethod):
    """Sentences about each class, word for word (Pratt et al., ICCV 2023)."""

    Settings = CuPLSettings
    kind = "extra text"
    needs_sentences = True

    def texts(self):
        """The sentences, and the templates with the class names as their file has them: `_` stays,
        as in its code.
        """
        templates = EIGHTY if self.settings.TEMPLATES == "eighty" else self.settings.TEMPLATES
        written = {plain(name): name for name in self.sentences}
        names = [written.get(name, name) for name in self.class_names]
        more = ([template.replace("{}", name) for template in templates] for name in names)
        return [
            [*sentences, *others] for sentences, others in zip(super().texts(), more, strict=True)
        ]
