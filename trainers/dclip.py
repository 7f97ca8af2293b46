from dataclasses import dataclass
from typing import Literal

from dassl.engine import TRAINER_REGISTRY

from common.names import plain

from .base.teacher import which
from .zsclip import SeveralSettings, TextsMethod


@dataclass(frozen=True)
class DCLIPSettings(SeveralSettings):
    """NAME is the place of the class name: prepend (BEFORE name BETWEEN descriptor AFTER), append
    (descriptor BETWEEN name) or none. MODIFY makes a relative clause of a descriptor."""

    NAME: Literal["prepend", "append", "none"] = "prepend"
    MODIFY: bool = True
    BETWEEN: str = ", "
    BEFORE: str = ""
    AFTER: str = ""


@TRAINER_REGISTRY.register()
class DCLIP(TextsMethod):
    """The descriptors of each class, in a sentence each (Menon and Vondrick, ICLR 2023)."""

    Settings = DCLIPSettings
    kind = "extra text"
    needs_sentences = True

    def texts(self):
        own = {plain(name): texts or [""] for name, texts in self.sentences.items()}
        return [
            [self.text(name, descriptor) for descriptor in own[name]] if name in own else rest
            for name, rest in zip(
                self.class_names, self.class_sentences(self.sentence), strict=True
            )
        ]

    def text(self, name: str, descriptor: str) -> str:
        s = self.settings
        clause = which(descriptor) if self.settings.MODIFY else descriptor
        if s.NAME == "prepend":
            return f"{s.BEFORE}{name}{s.BETWEEN}{clause}{s.AFTER}"
        return f"{clause}{s.BETWEEN}{name}" if s.NAME == "append" else clause
