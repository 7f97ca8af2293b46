import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from clip import TextPrompts, tokenize

from .base import PromptError, PromptLearner, PromptTrainer
from .prompts import sentence_context

POSITIONS = ("end", "middle", "front")


class CoOpPrompts(PromptLearner):
    """Context vectors in place of the words around the class name (CoOp, Sec. 3.2).

    Args:
        clip: the frozen backbone.
        classnames: C names.
        n_ctx: context vectors; with `ctx_init` as many as it has words, which they start from.
        csc: class-specific contexts, C x n_ctx vectors, random at the start.
        position: of the class name, `end`, `middle` or `front`.
    """

    def __init__(self, clip, classnames: list[str], n_ctx: int, ctx_init: str, csc: bool, position: str):
        super().__init__()
        words, self.ctx = sentence_context(clip, n_ctx, ctx_init, *([len(classnames)] if csc else []))
        ids = tokenize([" ".join([*words, f"{name}."]) for name in classnames], clip.context_length)
        ids, slots = place_names(ids, len(words), classnames, position)
        self.register_buffer("ids", ids, persistent=False)
        self.register_buffer("slots", slots, persistent=False)

    def text(self, image_features: Tensor) -> TextPrompts:
        return TextPrompts(self.ids, self.ctx, self.slots)


def place_names(ids: Tensor, n_ctx: int, classnames: list[str], position: str) -> tuple[Tensor, Tensor]:
    """Move the class names of rows [SOS][ctx][name][.][EOT] forward among the context vectors.

    Returns:
        the rows (C, positions), and the places (C, n_ctx) of the context vectors in them.
    """
    before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]  # vectors that stay ahead of the name
    rows, slots = ids.clone(), torch.arange(1, 1 + n_ctx).repeat(len(ids), 1)
    for row, slot, name in zip(rows, slots, classnames, strict=True):
        length = int((tokenize(name, ids.shape[1]) > 0).sum()) - 2  # without SOS and EOT
        ctx, words = row[1 : 1 + n_ctx].clone(), row[1 + n_ctx : 1 + n_ctx + length].clone()
        row[1 : 1 + n_ctx + length] = torch.cat([ctx[:before], words, ctx[before:]])
        slot[before:] += length
    return rows, slots


@TRAINER_REGISTRY.register()
class CoOp(PromptTrainer):
    """Context Optimization (Zhou et al., IJCV 2022).

    Settings: N_CTX, CTX_INIT, CSC (class-specific contexts), CLASS_TOKEN_POSITION, PREC.
    """

    defaults = {"N_CTX": 16, "CSC": False, "CTX_INIT": "", "PREC": "fp16", "CLASS_TOKEN_POSITION": "end"}
    keys = ("ctx",)

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        if self.settings.CLASS_TOKEN_POSITION not in POSITIONS:
            raise PromptError(f"TRAINER.COOP.CLASS_TOKEN_POSITION can be {', '.join(POSITIONS)}")

    def build_prompts(self, clip, classnames):
        coop = self.settings
        return CoOpPrompts(clip, classnames, coop.N_CTX, coop.CTX_INIT, coop.CSC, coop.CLASS_TOKEN_POSITION)

    def saved_module(self) -> nn.Module:
        return self.model.prompt_learner
