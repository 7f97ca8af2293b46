import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clip import ImageOutput, TextPrompts
from common.errors import UsageError

from .base import Method
from .base.checkpoints import SAME_SETTINGS, check_tensor, tensors_of
from .base.data_use import inherited
from .base.plugin import plugin
from .base.prompted import PromptedCLIP, normalize
from .base.settings import MethodSettings
from .base.trained_run import checkpoint_of

FROZEN = "backbone_ctx"  # the context of CoOp's run, in a checkpoint
LEAST = 2  # negatives of an image, if there are as many


@dataclass(frozen=True)
class DPCSettings(MethodSettings):
    """OVER is the output folder of CoOp's run, from whose context DPC starts; {seed} and {shots} in
    it are those of this run. Gradients are divided by WEIGHT. New classes have the share
    WEIGHT_FOR_NEW of the learned context. TOPK is how many classes near an image are negatives.
    """

    OVER: str = ""
    WEIGHT: int | float = 0.5
    WEIGHT_FOR_NEW: int | float = 0.0
    TOPK: int = 8
    ranges = {"WEIGHT": (1e-3, 1), "WEIGHT_FOR_NEW": (0, 1), "TOPK": (1, 100_000)}


class DPCCLIP(PromptedCLIP):
    """CoOp's model with two contexts: the learned one, and that of CoOp's run."""

    share_for_new: float
    rows: Tensor | None = None  # the classes whose texts are read; None for all

    def text_prompts(self, image_features: Tensor) -> TextPrompts:
        prompts: Any = super().text_prompts(image_features)
        if not (self.training or self.classes_learned):
            prompts = self.with_context(prompts, self.share_for_new)
        if self.rows is None:
            return prompts
        ctx = prompts.ctx[self.rows] if prompts.by_class else prompts.ctx
        return replace(prompts, ids=prompts.ids[self.rows], ctx=ctx, slots=prompts.slots[self.rows])

    def with_context(self, prompts: TextPrompts, share: float) -> TextPrompts:
        """The prompts with `share` of the learned context, and the rest of that of CoOp's run."""
        learner: Any = self.prompt_learner
        return replace(prompts, ctx=torch.lerp(learner.get_buffer(FROZEN), learner.ctx, share))

    @torch.no_grad()
    def frozen_texts(self) -> Tensor:
        """(classes, joint), unit, under the context of CoOp's run."""
        prompts = self.with_context(self.prompt_learner.text(torch.empty(0)), 0.0)
        return normalize(self.towers.encode_text(self.clip, prompts))


def negatives_of(nearest: list[int], label: int, seen: set[int], classes: int) -> list[int]:
    """Classes that `seen` lacks, for an image with this label: the `nearest` ones and, if these are
    fewer than two, drawn ones, as published never the first or the last class. `seen` gets them.
    """
    found = [one for one in nearest if one != label and one not in seen]
    seen.update(found)
    for _ in range(classes - 2 if len(found) < LEAST else 0):
        drawn = random.randint(1, classes - 2)
        if len(found) == LEAST:  # published code draws first
            break
        if drawn not in seen:
            found.append(drawn)
            seen.add(drawn)
    return found


class DPCMethod(Method):
    """CoOp, behind this class, that learns a second context from its first one."""

    model: DPCCLIP
    reads_views = False
    images_of_class: Mapping[int, list[int]] = {}  # the training images of each class

    def build_prompts(self, clip, classnames):
        learner = super().build_prompts(clip, classnames)
        learner.register_buffer(FROZEN, learner.ctx.detach().clone())
        return learner

    def after_build(self):
        super().after_build()
        self.model.share_for_new = self.settings.WEIGHT_FOR_NEW

    def check_training(self):
        super().check_training()
        classes = len(self.class_names)
        if classes < self.settings.TOPK:
            fault = f"TRAINER.{self.section()}.TOPK is {self.settings.TOPK}"
            raise UsageError(f"{fault}, and there are {classes} classes", f"give at most {classes}")
        seen = {item.label for item in self.images.dataset.train_x}
        if missing := {*range(classes)} - seen:
            name = self.class_names[min(missing)]
            raise UsageError(f"DPC has no training image of {name!r}", "give each class one")
        _ = self.start_context  # also so that the record of the run has what is behind it

    @cached_property
    def start_context(self) -> Tensor:
        """What training starts from, with what is behind it."""
        return self.context_of_run()

    def context_of_run(self) -> Tensor:
        """The context of CoOp's run in OVER, with what is behind it. Raises UsageError if it does
        not fit.
        """
        key = f"TRAINER.{self.section()}.OVER"
        if not self.settings.OVER:
            fault = f"DPC starts from the context of a run of CoOp, and {key} is empty"
            raise UsageError(fault, f"train CoOp, and give its output folder: {key} FOLDER")
        checkpoint, path = checkpoint_of(self.folder_of_run(self.settings.OVER), key)
        self.check_first_run(checkpoint.get("metadata") or {}, path)
        state = tensors_of(checkpoint)
        learner: Any = self.model.prompt_learner
        check_tensor("ctx", state, learner.ctx, path, SAME_SETTINGS)
        self.inherited_choices, self.inherited_phases = inherited(checkpoint)
        return state["ctx"].to(learner.ctx)

    def check_first_run(self, written: Mapping[str, Any], path: str) -> None:
        """Raise UsageError if a checkpoint with this metadata is not CoOp's, or is of other
        weights, or its context means something else here.
        """
        self.checkpoints.check_weights(written, path)
        remedy = f"give a run of CoOp: TRAINER.{self.section()}.OVER FOLDER"
        if (method := written.get("method", "CoOp")) != "CoOp":
            raise UsageError(f"{path} is a checkpoint of {method}, not of CoOp", remedy, path)
        position = self.settings.CLASS_TOKEN_POSITION
        before = (written.get("settings") or {}).get("CLASS_TOKEN_POSITION", position)
        if before != position:
            fault = f"{path} has CLASS_TOKEN_POSITION {before}, here {position}"
            raise UsageError(fault, SAME_SETTINGS, path)
        if self.settings.CSC and written.get("class_names", self.class_names) != self.class_names:
            raise UsageError(f"{path} has a context for each of other classes", remedy, path)

    def before_load(self, checkpoint, path):
        """A published checkpoint lacks the context of CoOp's run, which OVER has."""
        if FROZEN in tensors_of(checkpoint):
            return super().before_load(checkpoint, path)
        state = {**checkpoint["state_dict"], FROZEN: self.context_of_run()}
        return super().before_load({**checkpoint, "state_dict": state}, path)

    def batches(self, loader):
        if not self.images_of_class:  # before the first epoch, and before a run resumes
            ctx = self.start_context
            learner = self.model.prompt_learner
            for tensor in (learner.ctx, learner.get_buffer(FROZEN)):
                tensor.data.copy_(ctx)
            self.train_images = loader.dataset
            self.images_of_class = defaultdict(list)
            for index, item in enumerate(loader.dataset.data_source):
                self.images_of_class[item.label].append(index)
        self.frozen_texts = self.model.frozen_texts()
        return loader

    @torch.no_grad()
    def parse_batch_train(self, batch):
        """Each image, and behind it one image of each of its negatives: the output of the image
        tower for them, and the place of each label in `model.rows`.
        """
        images, labels = super().parse_batch_train(batch)
        with self.autocast():
            features = self.model.image_output(images).feature
            cosines = normalize(features) @ self.frozen_texts.T
            nearest = cosines.topk(self.settings.TOPK, dim=1).indices
            pairs, others = self.pairs(nearest.tolist(), labels.tolist())
            if others:
                more = self.model.image_output(torch.stack(others).to(images))
                features = torch.cat([features, more.feature])
        order, classes = torch.tensor(pairs, device=features.device).T
        self.model.rows, places = classes.unique(return_inverse=True)
        return ImageOutput(features[order]), places

    def pairs(
        self, nearest: list[list[int]], labels: list[int]
    ) -> tuple[list[tuple[int, int]], list[Tensor]]:
        """The pairs of a batch, (place of the image, label), and the images of the negatives, whose
        places follow those of the batch.
        """
        seen = set(labels)
        pairs = []
        others: list[Tensor] = []
        for place, (near, label) in enumerate(zip(nearest, labels, strict=True)):
            pairs.append((place, label))
            for negative in negatives_of(near, label, seen, len(self.class_names)):
                pairs.append((len(labels) + len(others), negative))
                others.append(
                    self.train_images[random.choice(self.images_of_class[negative])]["img"]
                )
        return pairs, others

    def both_passes(self, images, labels):
        logged = super().both_passes(images, labels)
        self.model.rows = None
        return logged

    def backward(self, loss, parts):
        super().backward(loss, parts)
        self.model.prompt_learner.ctx.grad /= self.settings.WEIGHT

    def loss(self, output, labels):
        """The contrastive loss of images and texts of a batch, each pair with itself."""
        logits = output.logits[:, labels]
        own = torch.arange(len(labels), device=logits.device)
        loss = F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)
        return loss / 2, {}


@plugin("DPC")
def dpc(base: type[Method]) -> type[Method] | None:
    """Dual-prompt collaboration over CoOp (Li et al., CVPR 2025)."""
    if base.__name__ != "CoOp":
        return None

    @dataclass(frozen=True)
    class Both(DPCSettings, base.Settings): ...  # type: ignore[name-defined, misc]

    class Trainer(DPCMethod, base):  # type: ignore[valid-type, misc]
        __doc__ = "CoOp with a second context for its base classes (DPC; CVPR 2025)."
        Settings = Both
        Model = type("Model", (DPCCLIP, base.Model), {})
        published = (*base.published, FROZEN)
        config_folder = "DPC+CoOp"

    return Trainer
