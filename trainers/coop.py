from dataclasses import dataclass

from dassl.engine import TRAINER_REGISTRY
from torch import nn

from common.errors import UsageError

from .base import PromptTrainer
from .prompts import CoOpPrompts
from .settings import MethodSettings

POSITIONS = ("end", "middle", "front")


@dataclass(frozen=True)
class CoOpSettings(MethodSettings):
    """CSC asks for class-specific contexts."""

    N_CTX: int = 16
    CSC: bool = False
    CTX_INIT: str = ""
    CLASS_TOKEN_POSITION: str = "end"

    def check(self):
        if self.CLASS_TOKEN_POSITION not in POSITIONS:
            raise UsageError(
                f"CLASS_TOKEN_POSITION is {self.CLASS_TOKEN_POSITION!r}", f"it can be {', '.join(POSITIONS)}"
            )


@TRAINER_REGISTRY.register()
class CoOp(PromptTrainer):
    """Context Optimization (Zhou et al., IJCV 2022)."""

    Settings = CoOpSettings

    def build_prompts(self, clip, classnames):
        coop = self.settings
        return CoOpPrompts(clip, classnames, coop.N_CTX, coop.CTX_INIT, coop.CSC, coop.CLASS_TOKEN_POSITION)

    def saved_module(self) -> nn.Module:
        return self.model.prompt_learner
