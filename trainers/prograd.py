from dataclasses import dataclass

import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor

from common.errors import UsageError

from .base.prompts import WORDS_FIRST, ContextSettings, zeros_and_words
from .base.teacher import TaughtMethod
from .coop import CoOp


@dataclass(frozen=True)
class ProGradSettings(ContextSettings):
    """CTX_INIT is words, or True for those of the teacher's sentence. T is the temperature of both
    predictions in the divergence from the frozen CLIP. LAMBDA is the share of the opposing gradient
    to remove.
    """

    CTX_INIT: bool | str = False
    NAME: str = "prograd"
    T: int | float = 1.0
    LAMBDA: int | float = 1.0
    ranges = {"T": (0.001, 1000), "LAMBDA": (0, 1000)}

    def check(self):
        super().check()
        if self.NAME != "prograd":  # the published code has others, and this key to choose one
            raise UsageError(
                f"NAME is {self.NAME!r}",
                "the loss of ProGrad is prograd; for cross-entropy use CoOp",
            )


@TRAINER_REGISTRY.register()
class ProGrad(TaughtMethod, CoOp):
    """Prompt-aligned Gradient: no step against the frozen CLIP's predictions (Zhu et al., ICCV
    2023).
    """

    Settings = ProGradSettings
    published_sections = ("TRAINER.COOP", "LOSS")
    teacher_templates = WORDS_FIRST
    caveat = (
        "its published settings are for RN50, and its published base-to-new results have 4 shots"
    )

    def start(self, clip, classes):
        """With CTX_INIT the last vectors start from its words, one for each, and those before them
        from zero.
        """
        return (
            zeros_and_words(self, clip) if self.settings.CTX_INIT else super().start(clip, classes)
        )

    def loss(self, output, labels):
        """Cross-entropy; and, in the parts, that with the frozen CLIP's predictions as targets."""
        model = self.model
        logits = output.logits
        temperature = self.settings.T
        # With PREC amp the teacher computes in fp32. With fp16 it is the fp16 CLIP; that of the
        # published code is fp32.
        with torch.autocast(logits.device.type, enabled=False):
            image = self.teacher.image_features(output.images) if self.amp else output.image
            teacher = F.softmax(
                model.logits(image, self.teacher.text_features) / temperature, dim=1
            )
            kl = temperature**2 * F.cross_entropy(logits / temperature, teacher)
            xe = F.cross_entropy(logits, labels)
        return xe, {"loss_xe": xe, "loss_kl": kl}

    def backward(self, loss: Tensor, parts: dict[str, Tensor]) -> None:
        """Take from each gradient the part that opposes the gradient of `loss_kl`.

        Both gradients have the scaler's factor, which cancels in their projection. If it is too
        large for the second one, the result is not finite, and the scaler skips the step.
        """
        learned = list(self.model.parameters())
        opposed = []
        of_loss = torch.autograd.grad(self.scaler.scale(loss), learned, retain_graph=True)
        general = torch.autograd.grad(
            self.scaler.scale(parts["loss_kl"]), learned, materialize_grads=True
        )
        for parameter, a, b in zip(learned, of_loss, general, strict=True):
            product = (a * b).sum()
            opposed.append(product < 0)
            share = torch.where(product < 0, product / (b * b).sum(), 0)
            parameter.grad = a - self.settings.LAMBDA * share * b
        parts["projected"] = torch.stack(opposed).any().float()
