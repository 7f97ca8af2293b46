from copy import deepcopy
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from clip import Edit, Schedule, TextPrompts, image_blocks, prompt_lengths

from .base import Method, require_vit
from .base.compat import COUPLED
from .base.prompts import (
    TemplatePrompts,
    check_depth,
    gaussian,
    mapped,
    text_width,
    vision_width,
    word_embeddings,
)
from .base.settings import MethodSettings, PerLayer


@dataclass(frozen=True)
class MPLSettings(MethodSettings):
    """N_ADD_OP and N_RM_OP are one number for all of the layers 1..PROMPT_DEPTH-1, or a list with
    one for each.
    """

    N_CTX: int = 2
    N_ADD_OP: PerLayer = 2
    N_RM_OP: PerLayer = 1
    CTX_INIT: str = "a photo of a"
    PROMPT_DEPTH: int = 9
    ranges = {"N_ADD_OP": (0, 50), "N_RM_OP": (0, 10_000)}

    def check(self):
        _ = self.adds, self.removes

    @property
    def adds(self) -> list[int]:
        """How many times N_CTX prompts each of the layers 1..PROMPT_DEPTH-1 adds."""
        return self.per_layer("N_ADD_OP", self.PROMPT_DEPTH - 1, "PROMPT_DEPTH - 1")

    @property
    def removes(self) -> list[int]:
        """How many prompts each of these layers removes before that."""
        return self.per_layer("N_RM_OP", self.PROMPT_DEPTH - 1, "PROMPT_DEPTH - 1")


class MPLPrompts(TemplatePrompts):
    """Coupled prompts of both towers, added, removed and carried on in the image tower (MPL, Sec.
    IV, Fig. 1).

    Args:
        n_ctx: prompts of the text tower at each of the first `depth` layers.
        ctx_init: fixed words between them and the class name.
        adds, removes: for each of the layers 1..depth-1, how many times n_ctx vision prompts are
            added, and how many of those present are removed before that.
    """

    def __init__(
        self,
        clip,
        classnames: list[str],
        n_ctx: int,
        ctx_init: str,
        adds: list[int],
        removes: list[int],
    ):
        words = f"{'X ' * n_ctx}{ctx_init.replace('_', ' ')} "
        super().__init__("{}.", classnames, clip, words)
        self.n_ctx = n_ctx
        self.adds = adds
        self.removes = removes
        self.ctx = word_embeddings(clip, words, n_ctx)
        self.proj = nn.Linear(text_width(clip), vision_width(clip))
        self.compound_prompts_text = nn.ParameterList(
            gaussian(n_ctx, text_width(clip)) for _ in adds
        )
        # The coupling functions, all copies of one initialisation; names are
        # `txt2img_proj.<which>.<layer - 1>`.
        coupling = nn.Linear(text_width(clip), vision_width(clip))
        self.txt2img_proj = nn.ModuleList(
            nn.ModuleDict(
                {
                    str(layer): deepcopy(coupling)
                    for layer, count in enumerate(adds)
                    if which < count
                }
            )
            for which in range(max(adds, default=0))
        )

    def text(self, image_features: Tensor) -> TextPrompts:
        deep = [Edit(self.n_ctx, ctx) for ctx in self.compound_prompts_text]
        return TextPrompts(self.ids, self.ctx, deep=[Edit(), *deep])

    def vision(self) -> Schedule:
        projections: Any = self.txt2img_proj
        keys = [str(layer) for layer in range(len(self.adds))]
        # Of each layer
        maps = [[which[key] for which in projections if key in which] for key in keys]
        contexts = [
            ctx
            for ctx, of_layer in zip(self.compound_prompts_text, maps, strict=True)
            for _ in of_layer
        ]
        first, *others = mapped([self.proj, *chain(*maps)], [self.ctx, *contexts])
        schedule = [Edit(add=first)]
        new = iter(others)
        for of_layer, remove in zip(maps, self.removes, strict=True):
            vectors = list(islice(new, len(of_layer)))
            schedule.append(Edit(remove, torch.cat(vectors) if vectors else None))
        return schedule


@TRAINER_REGISTRY.register()
class MPL(Method):
    """Modular Prompt Learning (Huang et al., ICASSP 2025)."""

    Settings = MPLSettings
    checkpoint_folder = "MultiModalPromptLearner"
    published = (*COUPLED, "prompt_learner.txt2img_proj.*")

    def build_prompts(self, clip, classnames):
        mpl = self.settings
        require_vit(clip, "MPL", self.cfg.MODEL.BACKBONE.NAME)
        check_depth(clip, "TRAINER.MPL.PROMPT_DEPTH", mpl.PROMPT_DEPTH)
        return MPLPrompts(clip, classnames, mpl.N_CTX, mpl.CTX_INIT, mpl.adds, mpl.removes)

    def log_lines(self):
        lengths = self.vision_lengths(self.settings, len(image_blocks(self.model.clip)))
        return [f"Vision prompts at each layer: {', '.join(map(str, lengths))}"]

    @classmethod
    def vision_lengths(cls, settings, layers):
        adds = [settings.N_CTX, *(count * settings.N_CTX for count in settings.adds)]
        return prompt_lengths(adds, [0, *settings.removes], layers)
