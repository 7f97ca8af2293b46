from dataclasses import dataclass

from dassl.engine import TRAINER_REGISTRY

from .base.prompts import ContextSettings, ContextTrainer, sentence_context


@dataclass(frozen=True)
class CoOpSettings(ContextSettings):
    CTX_INIT: str = ""


@TRAINER_REGISTRY.register()
class CoOp(ContextTrainer):
    """Context Optimization (Zhou et al., IJCV 2022)."""

    Settings = CoOpSettings

    def start(self, clip, classes):
        return sentence_context(clip, self.settings.N_CTX, self.settings.CTX_INIT, *classes)
