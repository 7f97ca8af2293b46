import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY

from common.errors import UsageError

from .base.teacher import TEMPLATES, Teacher
from .ivlp import IVLP, IVLPSettings


@dataclass(frozen=True)
class PromptSRCSettings(IVLPSettings):
    """GPA_MEAN and GPA_STD are epochs."""

    N_CTX_VISION: int = 4
    N_CTX_TEXT: int = 4
    TEXT_LOSS_WEIGHT: int = 25
    IMAGE_LOSS_WEIGHT: int = 10
    GPA_MEAN: int = 15
    GPA_STD: int = 1
    ranges = {"TEXT_LOSS_WEIGHT": (0, 1_000_000), "IMAGE_LOSS_WEIGHT": (0, 1_000_000)}
    ranges |= {"GPA_MEAN": (0, 100_000), "GPA_STD": (1, 100_000)}


def gpa_weights(epochs: int, mean: float, std: float) -> list[float]:
    """Weight of each epoch 1..`epochs` in the average of the prompts: a normal density, scaled to
    sum to 1 (Eq. 8). Raises UsageError if the mean is so far from these epochs that all weights are
    0.
    """
    density = [math.exp(-0.5 * ((epoch - mean) / std) ** 2) for epoch in range(1, epochs + 1)]
    total = sum(density)
    if total == 0:
        raise UsageError(
            f"TRAINER.PROMPTSRC.GPA_MEAN {mean} is far from all {epochs} epochs",
            "choose one of them",
        )
    return [value / total for value in density]


@TRAINER_REGISTRY.register()
class PromptSRC(IVLP):
    """Self-regulating prompts: IVLP held near the frozen CLIP, averaged over epochs (Khattak et
    al., ICCV 2023).
    """

    Settings = PromptSRCSettings
    reads_sentences = True
    finishes = True

    def start_training(self, epochs, batches):
        super().start_training(epochs, batches)
        self.gpa_weights = gpa_weights(epochs, self.settings.GPA_MEAN, self.settings.GPA_STD)
        self.gpa_weight = 0.0
        self.gpa_sum = {
            name: torch.zeros_like(value) for name, value in self.model.state_dict().items()
        }
        self.teacher = Teacher(self.model, self.class_sentences(*TEMPLATES))

    def loss(self, output, labels):
        """Cross-entropy, and the distances of features and predictions from the frozen CLIP's (Eqs.
        3-6).
        """
        logits = output.logits
        settings = self.settings
        teacher_image = self.teacher.image_features(output.images)
        teacher_text = self.teacher.text_features
        teacher_logits = self.model.logits(teacher_image, teacher_text)
        ours = F.log_softmax(logits, dim=1)
        teacher = F.log_softmax(teacher_logits, dim=1)
        kl = F.kl_div(ours, teacher, reduction="sum", log_target=True) / logits.numel()
        parts = {
            "loss_ce": F.cross_entropy(logits, labels),
            "loss_text": F.l1_loss(output.text, teacher_text) * settings.TEXT_LOSS_WEIGHT,
            "loss_image": F.l1_loss(output.image, teacher_image) * settings.IMAGE_LOSS_WEIGHT,
            "loss_kl": kl,
        }
        return sum(parts.values()), parts

    def after_epoch(self):
        """Add the epoch's prompts to the running average; after the last epoch the average is the
        model.
        """
        weight = self.gpa_weights[self.training.epoch]
        self.gpa_weight += weight
        for name, value in self.model.state_dict().items():
            self.gpa_sum[name] += weight * value
        if self.training.is_last_epoch:
            if self.gpa_weight < 0.999:  # resumed from a checkpoint that did not hold the sum
                print(
                    f"GPA: only epochs of a total weight {self.gpa_weight:.3g} are known, "
                    "averaging those"
                )
                self.gpa_sum = {
                    name: value / self.gpa_weight for name, value in self.gpa_sum.items()
                }
            self.model.load_state_dict(self.gpa_sum)
        super().after_epoch()

    def run_state(self):
        return super().run_state() | {"gpa_sum": self.gpa_sum, "gpa_weight": self.gpa_weight}

    def load_run_state(self, state):
        super().load_run_state(state)
        self.gpa_weight = state["gpa_weight"]
        self.gpa_sum = {name: value.to(self.device) for name, value in state["gpa_sum"].items()}
