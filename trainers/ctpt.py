from dataclasses import dataclass

from dassl.engine import TRAINER_REGISTRY
from torch import Tensor

from .base.test_time import entropy_of_mean
from .base.tuning import TuningSettings, TuningTrainer


@dataclass(frozen=True)
class CTPTSettings(TuningSettings):
    """LAMBDA weighs the dispersion of the text features, which keeps the probabilities calibrated."""

    LAMBDA: int | float = 50.0
    ranges = {"LAMBDA": (0, 100_000)}


@TRAINER_REGISTRY.register()
class CTPT(TuningTrainer):
    """TPT whose classes keep apart (Yoon et al., ICLR 2024)."""

    Settings = CTPTSettings

    def objective(self, logits, text):
        return entropy_of_mean(logits) - self.settings.LAMBDA * dispersion(text)


def dispersion(text: Tensor) -> Tensor:
    """The mean distance of text features (classes, joint) from their mean."""
    return (text - text.mean(dim=0)).norm(dim=1).mean()
