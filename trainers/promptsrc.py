import math

import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor

from .base import PromptTrainer, normalize
from .prompts import TWO_TOWERS, two_tower_prompts
from .teacher import teacher_text_features


def gpa_weights(epochs: int, mean: float, std: float) -> list[float]:
    """Weight of each epoch 1..`epochs` in the average of the prompts: a normal density, scaled to sum to 1 (Eq. 8)."""
    density = [math.exp(-0.5 * ((epoch - mean) / std) ** 2) for epoch in range(1, epochs + 1)]
    return [value / sum(density) for value in density]


@TRAINER_REGISTRY.register()
class PromptSRC(PromptTrainer):
    """Self-regulating prompts: IVLP held near the frozen CLIP, averaged over epochs (Khattak et al., ICCV 2023).

    Settings: those of IVLP, TEXT_LOSS_WEIGHT, IMAGE_LOSS_WEIGHT, GPA_MEAN and GPA_STD (in epochs), PREC.
    """

    defaults = {
        "N_CTX_VISION": 4,
        "N_CTX_TEXT": 4,
        "CTX_INIT": "a photo of a",
        "PREC": "fp16",
        "PROMPT_DEPTH_VISION": 9,
        "PROMPT_DEPTH_TEXT": 9,
        "TEXT_LOSS_WEIGHT": 25,
        "IMAGE_LOSS_WEIGHT": 10,
        "GPA_MEAN": 15,
        "GPA_STD": 1,
    }
    saved_as = "VLPromptLearner"
    keys = TWO_TOWERS

    def build_prompts(self, clip, classnames):
        return two_tower_prompts(self, clip, classnames)

    def build_model(self):
        super().build_model()
        self.gpa_weight = 0.0
        self.gpa_sum = {name: torch.zeros_like(value) for name, value in self.model.state_dict().items()}
        self._teacher_text = None

    @property
    def teacher_text(self) -> Tensor:
        """(classes, joint), normalised: computed when training first asks for it."""
        if self._teacher_text is None:
            self._teacher_text = teacher_text_features(self.model.clip, self.class_names, self.device)
        return self._teacher_text

    def loss(self, images, labels):
        """Cross-entropy, and the distances of features and predictions from the frozen CLIP's (Eqs. 3-6)."""
        model, settings = self.model, self.settings
        image = model.image_features(images)
        text = model.text_features(image)
        logits = model.logits(image, text)
        with torch.no_grad():
            teacher_image = normalize(model.towers.encode_image(model.clip, images))
            teacher_logits = model.logits(teacher_image, self.teacher_text)
        ours, teacher = F.log_softmax(logits, dim=1), F.log_softmax(teacher_logits, dim=1)
        parts = {
            "loss_ce": F.cross_entropy(logits, labels),
            "loss_text": F.l1_loss(text, self.teacher_text) * settings.TEXT_LOSS_WEIGHT,
            "loss_image": F.l1_loss(image, teacher_image) * settings.IMAGE_LOSS_WEIGHT,
            "loss_kl": F.kl_div(ours, teacher, reduction="sum", log_target=True) / logits.numel(),
        }
        return sum(parts.values()), logits, parts

    def after_epoch(self):
        """Add the epoch's prompts to the running average; after the last epoch the average is the model."""
        weights = gpa_weights(self.max_epoch, self.settings.GPA_MEAN, self.settings.GPA_STD)
        self.gpa_weight += weights[self.epoch]
        for name, value in self.model.state_dict().items():
            self.gpa_sum[name] += weights[self.epoch] * value
        if self.epoch + 1 == self.max_epoch:
            if self.gpa_weight < 0.999:  # resumed from a checkpoint that did not hold the sum
                print(f"GPA: only epochs of a total weight {self.gpa_weight:.3g} are known, averaging those")
                self.gpa_sum = {name: value / self.gpa_weight for name, value in self.gpa_sum.items()}
            self.model.load_state_dict(self.gpa_sum)
        super().after_epoch()

    def run_state(self):
        return super().run_state() | {"gpa_sum": self.gpa_sum, "gpa_weight": self.gpa_weight}

    def load_run_state(self, state):
        super().load_run_state(state)
        self.gpa_weight = 0.0
        self.gpa_weight = state["gpa_weight"]
        self.gpa_sum = {name: value.to(self.device) for name, value in state["gpa_sum"].items()}
