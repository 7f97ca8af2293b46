"""Training loops."""

from dassl.engine.trainer import (
    TRAINER_REGISTRY,
    SimpleTrainer,
    TrainerBase,
    TrainerX,
    build_trainer,
)

__all__ = ["TRAINER_REGISTRY", "SimpleTrainer", "TrainerBase", "TrainerX", "build_trainer"]
