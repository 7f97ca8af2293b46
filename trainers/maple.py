"""MaPLe's coupled prompts of both towers, which CoPrompt has, too."""

from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar

from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from clip import Edit, Schedule, TextPrompts

from .base.compat import COUPLED
from .base.method import Method
from .base.prompts import (
    TemplatePrompts,
    check_depth,
    gaussian,
    mapped,
    start_context,
    text_width,
    vision_width,
)
from .base.settings import MethodSettings
from .base.trainer import require_vit


@dataclass(frozen=True)
class MaPLeSettings(MethodSettings):
    N_CTX: int = 2
    CTX_INIT: str = "a photo of a"
    PROMPT_DEPTH: int = 9


class CoupledPrompts(TemplatePrompts):
    """Deep prompts of both towers, the vision prompts a linear function of the text prompts (MaPLe,
    Sec. 3.2).

    Args:
        n_ctx: prompts at each of the first `depth` layers of both towers.
        ctx_init: words that the text prompts of layer 0 start from.
    """

    def __init__(self, clip, classnames: list[str], n_ctx: int, ctx_init: str, depth: int):
        words, ctx = start_context(clip, n_ctx, ctx_init)
        super().__init__("{}.", classnames, clip, f"{words} ")
        self.ctx = ctx
        self.proj = nn.Linear(text_width(clip), vision_width(clip))
        self.compound_prompts_text = nn.ParameterList(
            gaussian(n_ctx, text_width(clip)) for _ in range(depth - 1)
        )
        coupling = nn.Linear(text_width(clip), vision_width(clip))
        self.compound_prompt_projections = nn.ModuleList(
            deepcopy(coupling) for _ in range(depth - 1)
        )

    def text(self, image_features: Tensor) -> TextPrompts:
        return TextPrompts(
            self.ids,
            self.ctx,
            deep=[Edit(), *(Edit(len(p), p) for p in self.compound_prompts_text)],
        )

    def vision(self) -> Schedule:
        maps = [self.proj, *self.compound_prompt_projections]
        prompts = [self.ctx, *self.compound_prompts_text]
        first, *deep = mapped(maps, prompts)
        return [Edit(add=first), *(Edit(len(prompt), prompt) for prompt in deep)]


@TRAINER_REGISTRY.register()
class MaPLe(Method):
    """Multi-modal Prompt Learning (Khattak et al., CVPR 2023)."""

    Settings: ClassVar[type[MethodSettings]] = MaPLeSettings
    checkpoint_folder = "MultiModalPromptLearner"
    published: ClassVar[tuple[str, ...]] = (
        *COUPLED,
        "prompt_learner.compound_prompt_projections.*",
    )

    def build_prompts(self, clip, classnames):
        s = self.settings
        name = type(self).__name__
        require_vit(clip, name, self.cfg.MODEL.BACKBONE.NAME)
        check_depth(clip, f"TRAINER.{self.section()}.PROMPT_DEPTH", s.PROMPT_DEPTH)
        return CoupledPrompts(clip, classnames, s.N_CTX, s.CTX_INIT, s.PROMPT_DEPTH)
