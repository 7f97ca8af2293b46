import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from clip import CLIP, adapt

from .base import PromptedCLIP
from .base.copies import CopyLearner, require_clip
from .base.prompts import check_layer
from .base.settings import MethodSettings
from .base.steps import SteppedMethod, cosines
from .cliplora import LoRA

# Of a tensor: tower, block, rest
NAME = re.compile(r"^(visual\.)?(?:transformer\.resblocks\.(\d+)\.)?(.*)$")
TENSORS = {"ln": r"ln_[12]\..*", "bitfit": r".*\.bias", "lora": ""}  # of a block


@dataclass(frozen=True)
class TwoStageSettings(MethodSettings):
    """FRACTION of the N_ITERS times DATASET.NUM_SHOTS steps change the towers, the others learn a
    classifier. PEFT says what changes in the towers of MODALITY, in the blocks from VISION_START
    and TEXT_START on, counted from 0.
    """

    PEFT: Literal["ln", "bitfit", "lora"] = "ln"
    MODALITY: Literal["both", "vision", "text"] = "both"
    VISION_START: int = 0
    TEXT_START: int = 0
    N_ITERS: int = 300
    FRACTION: int | float = 0.6
    ranges = dict.fromkeys(("VISION_START", "TEXT_START"), (0, 100)) | {
        "N_ITERS": (1, 100_000),
        "FRACTION": (0, 1),
    }

    @property
    def starts(self) -> dict[str, int]:
        """The first block that changes, by tower."""
        starts = {"text": self.TEXT_START, "vision": self.VISION_START}
        return {tower: start for tower, start in starts.items() if self.MODALITY in ("both", tower)}

    def changes(self, name: str) -> bool:
        """Whether a tensor of the CLIP is copied. Layer norms outside of blocks stay, as in the
        official code.
        """
        visual, block, tensor = NAME.findall(name)[0]
        start = self.starts.get("vision" if visual else "text", math.inf)
        if block:
            return int(block) >= start and bool(re.fullmatch(TENSORS[self.PEFT], tensor))
        outside = tensor in ("ln_post.bias", "ln_final.bias") or (
            tensor == "ln_pre.bias" and start == 0
        )
        return self.PEFT == "bitfit" and outside and start < math.inf


class TwoStageLearner(CopyLearner):
    """What changes in the towers, by OpenAI's or CLIP-LoRA's names; and the classifier (C, joint),
    at first 0.
    """

    def __init__(self, clip: CLIP, classnames: list[str], settings: TwoStageSettings):
        copies = {name: name for name, _ in clip.named_parameters() if settings.changes(name)}
        super().__init__("a photo of a {}.", classnames, clip, copies)
        self.classifier = nn.Parameter(torch.zeros(len(classnames), clip.visual.output_dim))
        self.adapters: list[tuple[str, int, LoRA]] = []
        for tower, start in settings.starts.items() if settings.PEFT == "lora" else ():
            blocks = (clip if tower == "text" else clip.visual).transformer.resblocks
            for layer in range(start, len(blocks)):
                lora = LoRA(blocks[layer].ln_1.normalized_shape[0], 2, 2**-0.5, "qkv", 0.25)
                self.add_module(f"layer_{len(self.adapters)}", lora)
                self.adapters.append((tower, layer, lora))

    def install(self, clip: Any) -> None:
        super().install(clip)
        for tower, layer, lora in self.adapters:
            adapt(clip if tower == "text" else clip.visual, layer, lora)


class TwoStageCLIP(PromptedCLIP):
    """A learned class has its row of the classifier, every other class the text feature of the
    tuned tower.
    """

    prompt_learner: TwoStageLearner
    second_stage = False  # of a training step

    def encode_text(self, image_features: Tensor) -> Tensor:
        rows = self.prompt_learner.classifier
        if torch.is_grad_enabled():
            return rows if self.second_stage else super().encode_text(image_features)
        learned = rows.any(dim=1, keepdim=True)
        return (
            rows
            if learned.all()
            else torch.where(learned, rows, super().encode_text(image_features))
        )


@TRAINER_REGISTRY.register()
class TwoStage(SteppedMethod):
    """2SFS: layer norms of both towers learn first, then a classifier on their features (Farina et
    al., CVPR 2025).
    """

    Settings = TwoStageSettings
    Model = TwoStageCLIP
    checkpoint_has_learner_only = True
    tensors_by_class = ("classifier",)

    def build_prompts(self, clip, classnames):
        require_clip(clip, "TwoStage", self.cfg.MODEL.BACKBONE.NAME)
        for tower, start in self.settings.starts.items():
            check_layer(clip, f"TRAINER.TWOSTAGE.{tower.upper()}_START", start, (tower,))
        return TwoStageLearner(clip, classnames, self.settings)

    @property
    def first_steps(self) -> int:
        """The number of steps of the first stage."""
        return int(self.steps * self.settings.FRACTION)

    def build_schedule(self, optimizer):
        """A cosine for each stage. AdamW leaves out tensors without a gradient: the classifier's
        moments start at 0.
        """
        return cosines(
            optimizer, self.cfg.OPTIM.LR, (self.first_steps, self.steps - self.first_steps)
        )

    def training_step(self, batch):
        step = self.training.sched.last_epoch
        model = self.model
        model.second_stage = step >= self.first_steps
        # The tuned towers are frozen then: without dropout
        model.prompt_learner.train(not model.second_stage)
        if step == self.first_steps:
            with torch.no_grad():
                model.prompt_learner.classifier.copy_(
                    model.of_text(PromptedCLIP.encode_text(model, torch.empty(0)))
                )
        for name, tensor in model.prompt_learner.named_parameters():
            tensor.requires_grad_(name == "classifier" or not model.second_stage)
        return super().training_step(batch)
