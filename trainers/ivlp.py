from dataclasses import dataclass

from dassl.engine import TRAINER_REGISTRY

from .base import PromptTrainer
from .prompts import two_tower_prompts
from .settings import MethodSettings


@dataclass(frozen=True)
class IVLPSettings(MethodSettings):
    """A depth of 0 means no prompts in that tower."""

    N_CTX_VISION: int = 2
    N_CTX_TEXT: int = 2
    CTX_INIT: str = "a photo of a"
    PROMPT_DEPTH_VISION: int = 9
    PROMPT_DEPTH_TEXT: int = 9


@TRAINER_REGISTRY.register()
class IVLP(PromptTrainer):
    """Independent vision-language prompting: deep prompts in both towers, not coupled (MaPLe, Sec. 3.2)."""

    Settings = IVLPSettings
    saved_as = "VLPromptLearner"

    def build_prompts(self, clip, classnames):
        return two_tower_prompts(self, clip, classnames)
