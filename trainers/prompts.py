"""Pieces that several methods put their prompts together from."""

import torch
from torch import Tensor, nn

from clip import Edit, Schedule, TextPrompts, tokenize

from .base import PromptError, PromptLearner, PromptTrainer, require_vit

# Names of the learned tensors in the checkpoints of methods that share them.
VISION = ("image_encoder.VPT", "image_encoder.transformer.resblocks.*.VPT_shallow")
TWO_TOWERS = ("prompt_learner.ctx", *VISION, "text_encoder.transformer.resblocks.*.VPT_shallow")
COUPLED = ("prompt_learner.ctx", "prompt_learner.proj.*", "prompt_learner.compound_prompts_text.*")


def gaussian(*shape: int) -> nn.Parameter:
    """Learned vectors as every method starts them: normal, std 0.02."""
    return nn.Parameter(torch.empty(*shape).normal_(std=0.02))


def text_width(clip: nn.Module) -> int:
    return clip.ln_final.normalized_shape[0]


def vision_width(clip: nn.Module) -> int:
    return clip.visual.class_embedding.shape[0]


def word_embeddings(clip: nn.Module, words: str, n: int) -> nn.Parameter:
    """Learned vectors (n, text width) that start as the token embeddings of the first n tokens of `words`."""
    ids = tokenize(words, clip.context_length)[0]
    if n > int(ids.argmax()) - 1:
        raise PromptError(f"{n} context vectors are to start from {words!r}, which has fewer tokens: give more words")
    ids = ids[1 : 1 + n]
    return nn.Parameter(clip.token_embedding(ids).detach().float().clone())


def start_context(clip: nn.Module, n_ctx: int, ctx_init: str) -> tuple[str, nn.Parameter]:
    """The words before the class name, and the ctx that takes the place of the first n_ctx of their tokens.

    As the deep-prompt methods have it: up to four vectors start from `ctx_init`, and its further words stay as they
    are; more than four start at random, in place of so many `X`.
    """
    if ctx_init and n_ctx <= 4:
        words = ctx_init.replace("_", " ")
        return words, word_embeddings(clip, words, n_ctx)
    return " ".join(["X"] * n_ctx), gaussian(n_ctx, text_width(clip))


def sentence_context(clip: nn.Module, n_ctx: int, ctx_init: str, *classes: int) -> tuple[list[str], nn.Parameter]:
    """The words before the class name, and the ctx that takes the place of all of them.

    As CoOp and CoCoOp have it: with `ctx_init` there are as many vectors as words, which they start from; without,
    `n_ctx` random ones, for each of `classes` if that is given.
    """
    words = ctx_init.replace("_", " ").split()
    if words:
        return words, word_embeddings(clip, " ".join(words), len(words))
    return ["X"] * n_ctx, gaussian(*classes, n_ctx, text_width(clip))


class TowerPrompts(nn.Module):
    """Prompts of one tower for its first `depth` layers, each layer's own.

    Parameter names are those of published checkpoints: `VPT` for layer 0, `transformer.resblocks.<l>.VPT_shallow`
    beyond. `first` is False for the text tower, whose layer 0 has the context vectors.
    """

    def __init__(self, n: int, width: int, depth: int, first: bool = True):
        super().__init__()
        self.n = n
        if first and depth > 0:
            self.VPT = gaussian(n, width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleDict()
        for layer in range(1, depth):
            block = nn.Module()
            block.VPT_shallow = gaussian(n, width)
            self.transformer.resblocks[str(layer)] = block

    def schedule(self) -> Schedule:
        """Each layer's prompts replace those of the layer before (deep VPT)."""
        shallow = getattr(self, "VPT", None)
        deep = [Edit(self.n, block.VPT_shallow) for block in self.transformer.resblocks.values()]
        return [Edit(add=shallow), *deep] if shallow is not None or deep else ()


class IndependentPrompts(PromptLearner):
    """Prompts of the two towers that know nothing of each other (VPT, IVLP, PromptSRC).

    Args:
        clip: the frozen backbone.
        classnames: C names.
        n_text, depth_text: prompts of the text tower at each of its first layers; depth 0 leaves plain words.
        n_vision, depth_vision: likewise for the image tower.
        ctx_init: words before the class name.
    """

    def __init__(self, clip, classnames, n_text, depth_text, n_vision, depth_vision, ctx_init):
        super().__init__()
        words = ctx_init.replace("_", " ")
        if depth_text > 0:
            words, self.ctx = start_context(clip, n_text, ctx_init)
        ids = tokenize([f"{words} {name}." for name in classnames], clip.context_length)
        self.register_buffer("ids", ids, persistent=False)
        self.towers = {
            "image_encoder": TowerPrompts(n_vision, vision_width(clip), depth_vision),
            "text_encoder": TowerPrompts(n_text, text_width(clip), depth_text, first=False),
        }

    def text(self, image_features: Tensor) -> TextPrompts:
        ctx = getattr(self, "ctx", None)
        deep = self.towers["text_encoder"].schedule()
        return TextPrompts(self.ids, ctx, deep=[Edit(), *deep[1:]] if deep else ())

    def vision(self) -> Schedule:
        return self.towers["image_encoder"].schedule()


def two_tower_prompts(trainer: PromptTrainer, clip: nn.Module, classnames: list[str]) -> IndependentPrompts:
    """The prompts of IVLP's settings: N_CTX_TEXT, N_CTX_VISION, PROMPT_DEPTH_TEXT, PROMPT_DEPTH_VISION, CTX_INIT."""
    s = trainer.settings
    require_vit(clip, type(trainer).__name__, trainer.cfg.MODEL.BACKBONE.NAME)
    for tower in ("vision", "text"):
        key = f"PROMPT_DEPTH_{tower.upper()}"
        check_depth(clip, f"TRAINER.{trainer.section()}.{key}", s[key], (tower,), least=0)
    return IndependentPrompts(
        clip, classnames, s.N_CTX_TEXT, s.PROMPT_DEPTH_TEXT, s.N_CTX_VISION, s.PROMPT_DEPTH_VISION, s.CTX_INIT
    )


def check_depth(clip: nn.Module, key: str, depth: int, towers: tuple[str, ...] = ("text", "vision"), least: int = 1):
    """Refuse a prompt depth that one of the towers does not have."""
    layers = {"text": len(clip.transformer.resblocks), "vision": len(clip.visual.transformer.resblocks)}
    most = min(layers[tower] for tower in towers)
    if not least <= depth <= most:
        raise PromptError(f"{key} is {depth}: this backbone has {most} layers, so it can be {least} to {most}")
