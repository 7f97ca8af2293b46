from dataclasses import dataclass

import torch
from dassl.engine import TRAINER_REGISTRY
from open_clip.transformer import QuickGELU, Transformer
from torch import Tensor, nn

from clip import Edit, Schedule, TextPrompts, image_blocks, image_tower

from .base import Method, require_vit
from .base.prompts import ContextPrompts, Position, gaussian, text_width, vision_width
from .base.settings import MethodSettings


@dataclass(frozen=True)
class UPTSettings(MethodSettings):
    """DEEP gives each image layer prompts of its own. UNIFIED lets all prompts attend to one
    another, as the paper describes; in the published code each one attends to itself alone."""

    N_CTX_TEXT: int = 4
    N_CTX_VISION: int = 4
    PROJECT_DIM: int = 128
    DEEP: bool = True
    CLASS_TOKEN_POSITION: Position = "middle"
    UNIFIED: bool = False
    ranges = {"PROJECT_DIM": (1, 4096)}


def linear(inputs: int, outputs: int) -> nn.Module:
    """A linear map; between equal widths the published code has none."""
    return nn.Identity() if inputs == outputs else nn.Linear(inputs, outputs)


class UPTPrompts(ContextPrompts):
    """Prompts of both towers that one small transformer block makes, as MVLPT implements it."""

    def __init__(self, clip, classnames: list[str], settings: UPTSettings):
        n_text = settings.N_CTX_TEXT
        n_vision = settings.N_CTX_VISION
        dim = settings.PROJECT_DIM
        width = vision_width(clip)
        depth = len(image_blocks(clip)) if settings.DEEP else 1
        ctx = gaussian(n_text, text_width(clip))
        super().__init__(clip, classnames, ["X"] * n_text, ctx, settings.CLASS_TOKEN_POSITION)
        self.unified = settings.UNIFIED
        self.deep = depth > 1
        # As for the weights of a patch embedding
        bound = (6 / (image_tower(clip).patch + width)) ** 0.5
        self.vpt_embeddings = nn.Parameter(torch.empty(1, n_vision, width).uniform_(-bound, bound))
        if self.deep:
            self.vpt_embeddings_deep = nn.Parameter(
                torch.empty(depth - 1, n_vision, width).uniform_(-bound, bound)
            )
        self.mvlpt_proj = Transformer(dim, layers=1, heads=1, act_layer=QuickGELU)
        self.mvlpt_proj_ctx_vpt_pre = linear(width, dim)
        self.mvlpt_proj_ctx_vpt_post = linear(dim, width)
        self.mvlpt_proj_ctx_coop_pre = linear(ctx.shape[1], dim)
        self.mvlpt_proj_ctx_coop_post = linear(dim, ctx.shape[1])

    def prompts(self) -> tuple[Tensor, Tensor]:
        """The text tower's (n, text width) and the image tower's (layers, n, vision width)."""
        vision = torch.cat(
            [self.vpt_embeddings, *([self.vpt_embeddings_deep] if self.deep else [])]
        )
        before = [
            self.mvlpt_proj_ctx_coop_pre(self.ctx),
            self.mvlpt_proj_ctx_vpt_pre(vision.flatten(0, 1)),
        ]
        joint = torch.cat(before)  # (text and vision prompts, dim)
        # The published code gives the block one sequence in the order of many sequences of length
        # one.
        sequences = self.mvlpt_proj(joint.unsqueeze(0 if self.unified else 1)).view_as(joint)
        text, image = sequences.split([len(part) for part in before])
        return self.mvlpt_proj_ctx_coop_post(text), self.mvlpt_proj_ctx_vpt_post(image).view_as(
            vision
        )

    def text(self, image_features: Tensor) -> TextPrompts:
        return TextPrompts(self.ids, self.prompts()[0], self.slots)

    def vision(self) -> Schedule:
        first, *deep = self.prompts()[1]
        return [
            Edit(add=first, after_norm=True),
            *(Edit(len(prompts), prompts) for prompts in deep),
        ]


@TRAINER_REGISTRY.register()
class UPT(Method):
    """Unified Prompt Tuning (Zang et al., 2022), whose own repository has no code: this is MVLPT's
    implementation.
    """

    Settings = UPTSettings
    checkpoint_has_learner_only = True
    published = ("ctx", "vpt_embeddings*", "mvlpt_proj*")
    caveat = "as MVLPT implements it, since its authors published no code"

    def build_prompts(self, clip, classnames):
        require_vit(clip, "UPT", self.cfg.MODEL.BACKBONE.NAME)
        return UPTPrompts(clip, classnames, self.settings)
