import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from clip import CLIP
from common.errors import UsageError

from .base import PromptedCLIP
from .base.compat import optimizer_of
from .base.copies import CopyLearner
from .base.settings import MethodSettings
from .base.steps import SteppedMethod, cosines
from .base.teacher import unit_texts


@dataclass(frozen=True)
class FineTuneSettings(MethodSettings):
    """ENCODER vision tunes the image tower and a classifier; both tunes both towers, and the text
    tower gives the classes. The towers learn with TOWER_RATE times OPTIM.LR. CUTMIX is the
    probability that a batch is mixed. At the end WISE_FT of each change stays. The scale of the
    logits learns, from 1 / TEMPERATURE. N_ITERS times DATASET.NUM_SHOTS is the number of steps; 0:
    OPTIM.MAX_EPOCH epochs.
    """

    ENCODER: Literal["vision", "both"] = "vision"
    TOWER_RATE: int | float = 0.01
    CUTMIX: int | float = 0.5
    WISE_FT: int | float = 0.5
    TEMPERATURE: int | float = 0.07
    N_ITERS: int = 0
    ranges = dict.fromkeys(("TOWER_RATE", "CUTMIX", "WISE_FT"), (0, 1)) | {
        "TEMPERATURE": (0.001, 1),
        "N_ITERS": (0, 100_000),
    }


class FineTuneLearner(CopyLearner):
    """All tensors of the towers that learn, and the classifier (C, joint), which starts from the
    texts.
    """

    def __init__(
        self, template: str, classnames: list[str], clip: CLIP, settings: FineTuneSettings
    ):
        both = settings.ENCODER == "both"
        names = [name for name, _ in clip.named_parameters() if not name.startswith("logit_")]
        names = [name for name in names if both or name.startswith("visual.")]
        super().__init__(template, classnames, clip, {name: name for name in names})
        self.log_scale = nn.Parameter(torch.tensor(-math.log(settings.TEMPERATURE)))
        if not both:
            rows = torch.zeros(len(classnames), clip.visual.output_dim)
            self.classifier = nn.Parameter(rows)

    def of_towers(self) -> list[nn.Parameter]:
        return [self.get_parameter(name) for name in self.copies]

    def of_head(self) -> list[nn.Parameter]:
        return [tensor for name, tensor in self.named_parameters() if name not in self.copies]


class FineTunedCLIP(PromptedCLIP):
    """Cosine similarities of images and classifier, whose scale is learned."""

    prompt_learner: FineTuneLearner

    @property
    def scale(self) -> Any:
        return self.prompt_learner.log_scale.exp()

    def encode_text(self, image_features: Tensor) -> Tensor:
        learner = self.prompt_learner
        has_classifier = hasattr(learner, "classifier")
        return learner.classifier if has_classifier else super().encode_text(image_features)


@TRAINER_REGISTRY.register()
class FineTune(SteppedMethod):
    """All weights of the image tower learn, and a classifier that starts from the texts, with
    CutMix and WiSE-FT: the first stage of SWAT (Liu et al., CVPR 2025) without its retrieved
    images. Rows of the classifier have unit length here, and there is no warm-up.
    """

    Settings = FineTuneSettings
    Model = FineTunedCLIP
    reads_template = True
    reads_views = False
    checkpoint_has_learner_only = True
    tensors_by_class = ("classifier",)
    targets: Tensor | None = None  # (batch, C), of a mixed batch

    @classmethod
    def check_run(cls, cfg):
        super().check_run(cfg)
        share = cls.settings_of(cfg).WISE_FT
        if cfg.TEST.FINAL_MODEL == "best_val" and share < 1:
            fault = f"TEST.FINAL_MODEL is best_val, and WISE_FT {share} is of the last epoch alone"
            raise UsageError(fault, "test the last epoch, or set TRAINER.FINETUNE.WISE_FT to 1")

    def build_prompts(self, clip, classnames):
        return FineTuneLearner(self.template(), classnames, clip, self.settings)

    def after_build(self):
        if self.settings.ENCODER == "vision":
            learner = self.model.prompt_learner
            learner.classifier.data.copy_(unit_texts(self, self.template()))

    def build_optimizer(self):
        learner = self.model.prompt_learner
        rate = self.cfg.OPTIM.LR
        groups = [
            {"params": learner.of_towers(), "lr": rate * self.settings.TOWER_RATE},
            {"params": learner.of_head(), "lr": rate},
        ]
        optimizer = optimizer_of(self.model, self.cfg.OPTIM, groups)
        return optimizer, cosines(optimizer, rate, [self.steps])

    def parse_batch_train(self, batch):
        from torchvision.transforms.v2 import CutMix  # each command would wait for it

        images, labels = super().parse_batch_train(batch)
        self.targets = None
        if len(self.class_names) > 1 and torch.rand(()) < self.settings.CUTMIX:
            images, self.targets = CutMix(num_classes=len(self.class_names))(images, labels)
        return images, labels

    def loss(self, output, labels):
        """Cross-entropy; of a mixed batch with the shares of its images."""
        return F.cross_entropy(output.logits, labels if self.targets is None else self.targets), {}

    @torch.no_grad()
    def after_epoch(self):
        """WiSE-FT (Wortsman et al., CVPR 2022): only a share of the change stays."""
        if not self.training.is_last_epoch:
            return
        learner = self.model.prompt_learner
        starts = {name: self.model.frozen.get_parameter(name).float() for name in learner.copies}
        if self.settings.ENCODER == "vision":
            starts["classifier"] = unit_texts(self, self.template())
        for name, start in starts.items():
            tensor = learner.get_parameter(name)
            tensor.copy_(wise_ft(start, tensor, float(self.settings.WISE_FT)))


def wise_ft(start: Tensor, learned: Tensor, share: float) -> Tensor:
    """A tensor of CLIP with a share, from 0 to 1, of its learned change (Wortsman et al., 2022)."""
    return torch.lerp(start, learned, share)
