from collections import OrderedDict
from dataclasses import dataclass

from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from clip import TextPrompts, tokenize

from .base import PromptLearner, PromptTrainer
from .prompts import sentence_context, text_width
from .settings import MethodSettings


@dataclass(frozen=True)
class CoCoOpSettings(MethodSettings):
    N_CTX: int = 16
    CTX_INIT: str = ""


class CoCoOpPrompts(PromptLearner):
    """Context vectors shifted by what a small network makes of the image (CoCoOp, Sec. 3.2)."""

    def __init__(self, clip, classnames: list[str], n_ctx: int, ctx_init: str):
        super().__init__()
        width, joint = text_width(clip), clip.visual.output_dim
        words, self.ctx = sentence_context(clip, n_ctx, ctx_init)
        layers = {"linear1": nn.Linear(joint, joint // 16), "relu": nn.ReLU(), "linear2": nn.Linear(joint // 16, width)}
        self.meta_net = nn.Sequential(OrderedDict(layers))
        ids = tokenize([" ".join([*words, f"{name}."]) for name in classnames], clip.context_length)
        self.register_buffer("ids", ids, persistent=False)

    def text(self, image_features: Tensor) -> TextPrompts:
        shift = self.meta_net(image_features)  # (batch, width)
        return TextPrompts(self.ids, self.ctx + shift[:, None, None])


@TRAINER_REGISTRY.register()
class CoCoOp(PromptTrainer):
    """Conditional Context Optimization (Zhou et al., CVPR 2022)."""

    Settings = CoCoOpSettings
    published = ("ctx", "meta_net.*")

    def build_prompts(self, clip, classnames):
        return CoCoOpPrompts(clip, classnames, self.settings.N_CTX, self.settings.CTX_INIT)

    def saved_module(self) -> nn.Module:
        return self.model.prompt_learner
