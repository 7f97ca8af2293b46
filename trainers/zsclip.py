from dataclasses import dataclass

from dassl.engine import TRAINER_REGISTRY

from common.errors import UsageError
from common.names import CONTROL

from .base.settings import MethodSettings
from .base.texts import TextsMethod


@dataclass(frozen=True)
class ZeroshotCLIPSettings(MethodSettings):
    """TEMPLATE, a sentence with {} for the class name, replaces the dataset's."""

    TEMPLATE: str = ""

    def check(self):
        if self.TEMPLATE and ("{}" not in self.TEMPLATE or CONTROL.search(self.TEMPLATE)):
            raise UsageError(f"TEMPLATE is {self.TEMPLATE!r}", "put {} where the class name goes")


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(TextsMethod):
    """CLIP as it is, with one template for each dataset (Radford et al., 2021)."""

    Settings = ZeroshotCLIPSettings
    config_folder = "CoOp"

    @property
    def sentence(self) -> str:
        return self.settings.TEMPLATE or self.template()

    def notes(self):
        return [f"Template: {self.sentence}"]
