from dataclasses import dataclass

import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY

from clip import has_local_features
from common.errors import UsageError

from .base.prompted import local_logits
from .base.prompts import ContextSettings
from .coop import CoOp


@dataclass(frozen=True)
class LoCoOpSettings(ContextSettings):
    """LAMBDA weighs the entropy of the patches that do not show the class: those where at least
    TOPK classes are more likely. A TOPK below 1 is a share of the classes."""

    CTX_INIT: str = ""
    LAMBDA: int | float = 0.25
    TOPK: int | float = 0.2
    ranges = {"LAMBDA": (0, 1000), "TOPK": (0.001, 100_000)}

    def check(self):
        super().check()
        if self.TOPK > 1 and int(self.TOPK) != self.TOPK:
            raise UsageError(
                f"TOPK is {self.TOPK}", "give a number of classes, or a share of them below 1"
            )


@TRAINER_REGISTRY.register()
class LoCoOp(CoOp):
    """CoOp whose patches without the class are held away from all texts (Miyai et al., NeurIPS
    2023).
    """

    Settings = LoCoOpSettings

    def after_build(self):
        if not has_local_features(self.model.clip):
            fault = (
                f"LoCoOp reads features of patches, which {self.cfg.MODEL.BACKBONE.NAME} has "
                "none of"
            )
            raise UsageError(
                fault, "choose a backbone with a vision transformer or CLIP's ResNet, or CoOp"
            )
        self.model.read = ("local",)

    def check_training(self):
        if self.topk > len(self.class_names):
            fault = (
                f"TRAINER.LOCOOP.TOPK is {self.topk}, and there are {len(self.class_names)} classes"
            )
            raise UsageError(
                fault, f"give {max(1, len(self.class_names) // 5)}, or 0.2 for a fifth of them"
            )

    @property
    def topk(self) -> int:
        topk = self.settings.TOPK
        return int(topk) if topk >= 1 else max(1, round(topk * len(self.class_names)))

    def loss(self, output, labels):
        """Cross-entropy, minus LAMBDA times the mean entropy of the patches outside the class (Eqs.
        3-5).
        """
        local = local_logits(self.model, output).flatten(0, 1)  # (B M, C)
        patches = len(local) // len(labels)
        of_class = (
            local.topk(self.topk, dim=1).indices == labels.repeat_interleave(patches)[:, None]
        )
        outside = ~of_class.any(dim=1)
        p = local.softmax(dim=1)
        entropies = -(p * (p + 1e-5).log()).sum(dim=1)
        entropy = (entropies * outside).sum() / outside.sum().clamp(min=1)
        parts = {"loss_id": F.cross_entropy(output.logits, labels), "loss_en": -entropy}
        return parts["loss_id"] + self.settings.LAMBDA * parts["loss_en"], parts
