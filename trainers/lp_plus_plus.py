from dataclasses import dataclass

import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from common.errors import UsageError

from .base.feature_method import ChoosingSettings, FeatureSpec, FittedMethod, Support
from .base.head import Head
from .base.prompted import normalize
from .base.teacher import SEVEN

START = 250  # times the mean similarity of an image and the text of its class


@dataclass(frozen=True)
class LPPlusPlusSettings(ChoosingSettings):
    """Of STEPS steps with all images, the weights after STEP are kept; 0 lets the validation images
    choose it. After ALPHA_EVERY steps the weights of the texts take one."""

    AUGMENT_EPOCH: int = 1
    STEPS: int = 300
    STEP: int = 0
    ALPHA_EVERY: int = 10
    ranges = {
        "AUGMENT_EPOCH": (0, 1),
        "STEPS": (1, 1_000_000),
        "STEP": (0, 1_000_000),
        "ALPHA_EVERY": (1, 1_000_000),
    }

    def check(self):
        if self.STEP > self.STEPS:
            raise UsageError(f"STEP is {self.STEP}", f"the last step is {self.STEPS}")


class Blended(Head):
    """A linear classifier next to the text features, with a weight for the text of each class
    (Huang et al., 2024).
    """

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.classifier = nn.Linear(width, classes)
        self.alpha_vec = nn.Parameter(torch.zeros(1, classes))

    def classify(self, image, text, scale):
        image = normalize(image)
        return self.classifier(image) + self.alpha_vec * (image @ text.T)


@TRAINER_REGISTRY.register()
class LPPlusPlus(FittedMethod):
    """LP++: a linear probe with class-wise text weights and learning rates from the data (Huang et
    al., CVPR 2024).
    """

    Settings = LPPlusPlusSettings
    checkpoint_folder = "lp_plus_plus"
    spec = FeatureSpec(SEVEN, chosen={"STEP": "300"}, needs_all=True, keeps_pairs=True)

    @property
    def trials(self) -> int:
        return self.settings.STEPS

    def build_head(self, classes, width, rows):
        return Blended(classes, width)

    @torch.no_grad()
    def start(self, support: Support) -> None:
        image = normalize(support.rows)
        labels = support.row_labels
        one_hot = F.one_hot(labels, len(self.head.classifier.bias)).float()
        similarity = image @ self.model.class_texts.T
        self.head.classifier.weight.data = one_hot.T @ image
        class_means = (one_hot * similarity).sum(dim=0) / one_hot.sum(dim=0)
        self.head.alpha_vec.data.fill_(START * class_means.mean().item())
        self.lr_w = 4 * len(image) / torch.linalg.eigvalsh((image.T @ image).double())[-1].item()
        self.lr_alpha = len(image) / (4 * similarity.square().sum(dim=0).max().item())
        parameters = list(self.head.classifier.parameters())
        self.steps_of_w = torch.optim.SGD(parameters, self.lr_w, momentum=0.9)
        self.gradient_of_alpha = torch.zeros_like(self.head.alpha_vec)

    @torch.enable_grad()
    def step(self, number: int, image: Tensor, labels: Tensor) -> float:
        """One step, by its number from 1, with all images; returns the loss before it.

        The gradients of alpha are added up over all steps, and never set to zero, as in the
        published code.
        """
        self.head.zero_grad()
        loss = F.cross_entropy(self.model.logits(image, self.model.class_texts), labels)
        loss.backward()
        self.training.check_loss(loss)
        self.steps_of_w.step()
        self.gradient_of_alpha += self.head.alpha_vec.grad
        if number % self.settings.ALPHA_EVERY == 0:
            self.head.alpha_vec.data -= self.lr_alpha * self.gradient_of_alpha
        return loss.item()

    def fit(self, support: Support) -> None:
        """The weights after STEP or, of those with the best validation accuracy, the latest."""
        best = -1
        kept = {}
        chosen = self.settings.STEP
        for number in range(1, (chosen or self.settings.STEPS) + 1):
            self.step(number, support.rows, support.row_labels)
            if not chosen and (correct := self.correct()) >= best:
                best = correct
                self.chosen_step = number
                kept = {name: tensor.clone() for name, tensor in self.head.state_dict().items()}
        if not chosen:
            self.head.load_state_dict(kept)
            print(f"Step {self.chosen_step}: {best} of {len(self.val[1])} validation images")
