from dataclasses import dataclass

from dassl.engine import TRAINER_REGISTRY

from .tpt import TPT, TPTSettings


@dataclass(frozen=True)
class OTPTSettings(TPTSettings):
    """LAMBDA weighs how far the text features are from orthogonal to one another."""

    LAMBDA: int | float = 18.0
    ranges = {"LAMBDA": (0, 100_000)}


@TRAINER_REGISTRY.register()
class OTPT(TPT):
    """TPT whose classes are pushed towards orthogonal texts (Sharifdeen et al., CVPR 2025)."""

    Settings = OTPTSettings

    def objective(self, logits, text):
        return super().objective(logits, text) + self.settings.LAMBDA * correlation(text)


def correlation(text):
    """The mean over classes of the norm of the cosines with all classes, less the own one.

    The published Householder construction has this value and gradient, and C x C x C tensors.
    """
    return ((text @ text.T).norm(dim=1) - 1).abs().mean()
