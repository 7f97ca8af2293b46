from dataclasses import dataclass

from dassl.engine import TRAINER_REGISTRY

from .base.prompts import ContextSettings, ContextTrainer


@dataclass(frozen=True)
class CoOpSettings(ContextSettings):
    CTX_INIT: str = ""


@TRAINER_REGISTRY.register()
class CoOp(ContextTrainer):
    """Context Optimization (Zhou et al., IJCV 2022)."""

    Settings = CoOpSettings
