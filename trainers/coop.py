from dataclasses import dataclass

from dassl.engine import TRAINER_REGISTRY

from .base.prompts import ContextMethod, ContextSettings


@dataclass(frozen=True)
class CoOpSettings(ContextSettings):
    CTX_INIT: str = ""


@TRAINER_REGISTRY.register()
class CoOp(ContextMethod):
    """Context Optimization (Zhou et al., IJCV 2022)."""

    Settings = CoOpSettings
