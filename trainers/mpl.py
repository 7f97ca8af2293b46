from copy import deepcopy

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from clip import Edit, Schedule, TextPrompts, prompt_lengths, tokenize

from .base import PromptError, PromptLearner, PromptTrainer, require_vit
from .prompts import COUPLED, check_depth, gaussian, text_width, vision_width, word_embeddings


class MPLPrompts(PromptLearner):
    """Coupled prompts of both towers, added, removed and carried on in the image tower (MPL, Sec. IV, Fig. 1).

    Args:
        clip: the frozen backbone; every width is read from it.
        classnames: C names.
        n_ctx: prompts of the text tower at each of the first `depth` layers.
        ctx_init: fixed words between them and the class name.
        adds, removes: for each of the layers 1..depth-1, how many times n_ctx vision prompts are added, and how many
            of those present are removed before that.
    """

    def __init__(self, clip, classnames: list[str], n_ctx: int, ctx_init: str, adds: list[int], removes: list[int]):
        super().__init__()
        words = ctx_init.replace("_", " ")
        texts = [f"{'X ' * n_ctx}{words} {name}." for name in classnames]
        self.register_buffer("ids", tokenize(texts, clip.context_length), persistent=False)
        self.n_ctx, self.adds, self.removes = n_ctx, adds, removes
        self.ctx = word_embeddings(clip, texts[0], n_ctx)
        self.proj = nn.Linear(text_width(clip), vision_width(clip))
        self.compound_prompts_text = nn.ParameterList(gaussian(n_ctx, text_width(clip)) for _ in adds)
        # The coupling functions, all copies of one initialisation; names are `txt2img_proj.<which>.<layer - 1>`.
        coupling = nn.Linear(text_width(clip), vision_width(clip))
        self.txt2img_proj = nn.ModuleList(
            nn.ModuleDict({str(layer): deepcopy(coupling) for layer, count in enumerate(adds) if which < count})
            for which in range(max(adds, default=0))
        )

    def text(self, image_features: Tensor) -> TextPrompts:
        deep = [Edit(self.n_ctx, ctx) for ctx in self.compound_prompts_text]
        return TextPrompts(self.ids, self.ctx, deep=[Edit(), *deep])

    def vision(self) -> Schedule:
        schedule = [Edit(add=self.proj(self.ctx))]
        for layer, (ctx, remove) in enumerate(zip(self.compound_prompts_text, self.removes, strict=True)):
            new = [proj[str(layer)](ctx) for proj in self.txt2img_proj if str(layer) in proj]
            schedule.append(Edit(remove, torch.cat(new) if new else None))
        return schedule


@TRAINER_REGISTRY.register()
class MPL(PromptTrainer):
    """Modular Prompt Learning (Huang et al., ICASSP 2025).

    Settings: N_CTX; N_ADD_OP and N_RM_OP, each one number for all of the layers 1..PROMPT_DEPTH-1 or a list with an
    entry for each of them; CTX_INIT; PROMPT_DEPTH; PREC.
    """

    defaults = {"N_CTX": 2, "N_ADD_OP": 2, "N_RM_OP": 1, "CTX_INIT": "a photo of a", "PREC": "fp16", "PROMPT_DEPTH": 9}
    per_layer = ("N_ADD_OP", "N_RM_OP")
    saved_as = "MultiModalPromptLearner"
    keys = (*COUPLED, "prompt_learner.txt2img_proj.*")

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        mpl = self.settings
        if mpl.N_CTX < 1 or mpl.PROMPT_DEPTH < 1:
            raise PromptError(f"TRAINER.MPL.N_CTX is {mpl.N_CTX} and PROMPT_DEPTH {mpl.PROMPT_DEPTH}: both start at 1")
        for key in ("N_ADD_OP", "N_RM_OP"):
            counts(mpl, key)

    def build_prompts(self, clip, classnames):
        mpl = self.settings
        require_vit(clip, "MPL", self.cfg.MODEL.BACKBONE.NAME)
        adds, removes = counts(mpl, "N_ADD_OP"), counts(mpl, "N_RM_OP")
        check_depth(clip, "TRAINER.MPL.PROMPT_DEPTH", mpl.PROMPT_DEPTH)
        lengths = vision_lengths(mpl, len(clip.visual.transformer.resblocks))
        print(f"Vision prompts at each layer: {', '.join(map(str, lengths))}")
        return MPLPrompts(clip, classnames, mpl.N_CTX, mpl.CTX_INIT, adds, removes)


def vision_lengths(settings, layers: int) -> list[int]:
    """How many prompts each of so many layers of the image tower sees, under the settings TRAINER.MPL."""
    adds, removes = counts(settings, "N_ADD_OP"), counts(settings, "N_RM_OP")
    return prompt_lengths([settings.N_CTX, *(count * settings.N_CTX for count in adds)], [0, *removes], layers)


def counts(settings, key: str) -> list[int]:
    """A setting as one number for each of the layers 1..PROMPT_DEPTH-1."""
    value, layers = settings[key], settings.PROMPT_DEPTH - 1
    numbers = list(value) if isinstance(value, list | tuple) else [value] * layers
    if len(numbers) != layers or not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise PromptError(
            f"TRAINER.MPL.{key} is {value}: give one number from 0 on, or a list of PROMPT_DEPTH - 1 = {layers} of them"
        )
    return numbers
