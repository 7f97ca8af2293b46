from collections import OrderedDict
from dataclasses import dataclass

from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from clip import TextPrompts

from .base import Method
from .base.prompts import (
    TemplatePrompts,
    check_words,
    sentence_context,
    text_width,
    unused_n_ctx,
    zeros_and_words,
)
from .base.settings import MethodSettings


@dataclass(frozen=True)
class CoCoOpSettings(MethodSettings):
    """CTX_INIT is words, or True for those of the dataset's sentence, as in ProGrad's
    repository.
    """

    N_CTX: int = 16
    CTX_INIT: bool | str = ""

    def check(self):
        check_words(self.CTX_INIT)


class CoCoOpPrompts(TemplatePrompts):
    """Context vectors shifted by the output of a small network for the image (CoCoOp, Sec. 3.2).

    Args:
        words: the words before the class name, which `ctx` replaces.
        ctx: (n, text width).
    """

    def __init__(self, clip, classnames: list[str], words: list[str], ctx: nn.Parameter):
        super().__init__("{}.", classnames, clip, " ".join([*words, ""]))
        width = text_width(clip)
        joint = clip.visual.output_dim
        self.ctx = ctx
        layers = {
            "linear1": nn.Linear(joint, joint // 16),
            "relu": nn.ReLU(),
            "linear2": nn.Linear(joint // 16, width),
        }
        self.meta_net = nn.Sequential(OrderedDict(layers))

    def text(self, image_features: Tensor) -> TextPrompts:
        shift = self.meta_net(image_features)  # (batch, width)
        return TextPrompts(self.ids, self.ctx + shift[:, None, None])


@TRAINER_REGISTRY.register()
class CoCoOp(Method):
    """Conditional Context Optimization (Zhou et al., CVPR 2022)."""

    Settings = CoCoOpSettings
    checkpoint_has_learner_only = True
    published = ("ctx", "meta_net.*")

    def build_prompts(self, clip, classnames):
        if (given := self.settings.CTX_INIT) is True:
            return CoCoOpPrompts(clip, classnames, *zeros_and_words(self, clip))
        return CoCoOpPrompts(
            clip, classnames, *sentence_context(clip, self.settings.N_CTX, given or "")
        )

    def log_lines(self):
        return unused_n_ctx(self)
