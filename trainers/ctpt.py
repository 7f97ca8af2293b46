from dataclasses import dataclass

from dassl.engine import TRAINER_REGISTRY

from .tpt import TPT, TPTSettings


@dataclass(frozen=True)
class CTPTSettings(TPTSettings):
    """LAMBDA weighs the dispersion of the text features, which keeps the probabilities
    calibrated.
    """

    LAMBDA: int | float = 50.0
    ranges = {"LAMBDA": (0, 100_000)}


@TRAINER_REGISTRY.register()
class CTPT(TPT):
    """TPT whose classes keep apart (Yoon et al., ICLR 2024)."""

    Settings = CTPTSettings

    def objective(self, logits, text):
        # The mean distance from their mean
        dispersion = (text - text.mean(dim=0)).norm(dim=1).mean()
        return super().objective(logits, text) - self.settings.LAMBDA * dispersion
