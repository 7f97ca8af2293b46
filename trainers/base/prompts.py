"""Prompts, and parts of them, that several methods share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clip import (
    CLIP,
    ClipError,
    TextPrompts,
    Tokenizer,
    image_blocks,
    text_blocks,
    text_width,
    tokenizer_of,
    word_table,
)
from clip import vision_width as vision_width  # method files read it here
from common.errors import UsageError

from .method import Method
from .prompted import PromptLearner
from .settings import MethodSettings

Position = Literal["end", "middle", "front"]  # of the class name among context vectors
WORDS = "a photo of a"


def gaussian(*shape: int) -> nn.Parameter:
    """Learned vectors with the initial values that every method uses: normal, std 0.02."""
    return nn.Parameter(torch.empty(*shape).normal_(std=0.02))


def mapped(maps: Sequence[nn.Linear], vectors: Sequence[Tensor]) -> list[Tensor]:
    """The i-th linear map of the i-th vectors (n, inputs), for maps of one shape.

    A GPU computes all of them by one product, which needs fewer launches; on a CPU copying the
    weights takes longer.
    """
    if len(maps) < 2 or not vectors[0].is_cuda:
        return [linear(x) for linear, x in zip(maps, vectors, strict=True)]
    weights = torch.stack([linear.weight for linear in maps])
    biases = torch.stack([linear.bias for linear in maps])
    # As columns: the gradient of the weights then has their layout, and need not be copied.
    return list(
        torch.baddbmm(biases[..., None], weights, torch.stack(list(vectors)).mT).mT.unbind()
    )


def word_embeddings(clip: CLIP, words: str, n: int) -> nn.Parameter:
    """Learned vectors (n, text width) that start as the token embeddings of the first n tokens of
    `words`.
    """
    tokenizer = tokenizer_of(clip)
    if n > tokenizer.length(words):
        raise UsageError(
            f"{n} context vectors must start from {words!r}, which has fewer tokens",
            "give more words",
        )
    ids = tokenizer([words])[0, tokenizer.start :][:n]
    return nn.Parameter(word_table(clip)(ids).detach().float().clone())


def start_context(clip: CLIP, n_ctx: int, ctx_init: str) -> tuple[str, nn.Parameter]:
    """The words before the class name, and the ctx that replaces the first n_ctx of their tokens.

    The convention of the deep-prompt methods: up to four vectors start from `ctx_init`, and its
    further words stay as they are; more than four start at random and replace `X X X ...`.
    """
    if ctx_init and n_ctx <= 4:
        words = ctx_init.replace("_", " ")
        return words, word_embeddings(clip, words, n_ctx)
    return " ".join(["X"] * n_ctx), gaussian(n_ctx, text_width(clip))


def sentence_context(
    clip: CLIP, n_ctx: int, ctx_init: str, *classes: int
) -> tuple[list[str], nn.Parameter]:
    """The words before the class name, and the ctx that replaces all of them.

    The convention of CoOp and CoCoOp: with `ctx_init` one vector for each word, which it starts
    from; without, `n_ctx` random vectors (`n_ctx` for each of `classes`, if that is given).
    """
    words = ctx_init.replace("_", " ").split()
    if words:
        return words, word_embeddings(clip, " ".join(words), len(words))
    return ["X"] * n_ctx, gaussian(*classes, n_ctx, text_width(clip))


def unused_n_ctx(method: Method) -> list[str]:
    """For `log_lines`: a line if the words of CTX_INIT give another number of context vectors than
    N_CTX.
    """
    # Prompts of a user's own may have none
    ctx: Any = getattr(method.model.prompt_learner, "ctx", None)
    n_ctx = method.settings.N_CTX
    n = n_ctx if ctx is None else ctx.shape[-2]
    line = (
        f"{n} context vectors, one for each word of CTX_INIT: TRAINER.{method.section()}.N_CTX "
        f"{n_ctx} is not used"
    )
    return [line] if n != n_ctx else []


# The sentences of ProGrad's repository, with the words about the dataset before the class name. The
# contexts of its ProGrad and of its CoCoOp start from these words.
WORDS_FIRST = {
    "OxfordPets": "a type of pet, a photo of a {}.",
    "OxfordFlowers": "a type of flower, a photo of a {}.",
    "FGVCAircraft": "a type of aircraft, a photo of a {}.",
    "DescribableTextures": "a texture of {}.",
    "Food101": "a type of food, a photo of {}.",
}


def zeros_and_words(method: Method, clip: CLIP) -> tuple[list[str], nn.Parameter]:
    """The words before the class name, and the ctx (N_CTX, text width) that replaces all of them.

    The convention of ProGrad's repository: the last vectors start from the words of CTX_INIT, one
    for each, and those before them from zero, which replace `X`. If it is True, the words are those
    before the class name of the template. Raises UsageError if there are no words, or more than
    N_CTX.
    """
    n_ctx = method.settings.N_CTX
    given = method.settings.CTX_INIT
    if given is True:
        sentence = method.template(WORDS_FIRST).partition("{}")[0]
    else:
        sentence = given.replace("_", " ")
    words = sentence.split()
    if not 0 < len(words) <= n_ctx:
        fault = (
            f"TRAINER.{method.section()}.CTX_INIT has {len(words)} words ({sentence!r}), and "
            f"N_CTX is {n_ctx}"
        )
        raise UsageError(fault, "give 1 to N_CTX words, or False to start at random")
    zeros = torch.zeros(n_ctx - len(words), text_width(clip))
    start = word_embeddings(clip, " ".join(words), len(words)).detach()
    return ["X"] * len(zeros) + words, nn.Parameter(torch.cat([zeros, start]))


class TemplatePrompts(PromptLearner):
    """A sentence for each class; nothing in it is learned, unless a subclass does.

    Args:
        template: the sentence, with {} for the class name.
        classnames: C names.
        clip: the backbone, whose tokeniser reads the sentences.
        words: before the sentence; {} in them is text.
    """

    def __init__(self, template: str, classnames: list[str], clip: CLIP, words: str = ""):
        super().__init__()
        try:
            ids = tokenizer_of(clip)([words + template.replace("{}", name) for name in classnames])
        except ClipError as error:
            remedy = (
                "lower N_CTX or N_CTX_TEXT, or shorten the name"
                if words.startswith("X ")
                else error.remedy
            )
            raise UsageError(error.fault, remedy) from error
        self.register_buffer("ids", ids, persistent=False)

    def text(self, image_features: Tensor) -> TextPrompts:
        return TextPrompts(self.ids)


class ContextPrompts(TemplatePrompts):
    """Context vectors that replace the words around the class name (CoOp, Sec. 3.2).

    Args:
        words: the words before the class name; the context replaces their first n tokens.
        ctx: (n, text width), or (C, n, text width) for contexts that differ by class.
        position: of the class name, `end`, `middle`, `front` or the number of vectors ahead of it.
    """

    slots: Tensor

    def __init__(
        self, clip, classnames: list[str], words: list[str], ctx: nn.Parameter, position: str | int
    ):
        super().__init__("{}.", classnames, clip, " ".join([*words, ""]))
        self.ctx = ctx
        self.ids, slots = move_class_tokens(
            self.ids, ctx.shape[-2], classnames, position, tokenizer_of(clip)
        )
        self.register_buffer("slots", slots, persistent=False)

    def text(self, image_features: Tensor) -> TextPrompts:
        return TextPrompts(self.ids, self.ctx, self.slots)


def check_words(given: bool | str) -> None:
    """Raise UsageError for a CTX_INIT that is a word where True or False was meant."""
    if given in ("true", "false"):
        raise UsageError(f"CTX_INIT is the word {given!r}", "write True or False, or other words")


@dataclass(frozen=True)
class ContextSettings(MethodSettings):
    """The settings of CoOp's context vectors. CSC asks for class-specific ones; CTX_INIT is words
    to start from.
    """

    N_CTX: int = 16
    CSC: bool = False
    CTX_INIT: bool | str = ""
    CLASS_TOKEN_POSITION: Position = "end"

    def check(self):
        check_words(self.CTX_INIT)
        if self.CSC and self.CTX_INIT:
            fault = "CSC True has no effect where contexts start from the words of CTX_INIT"
            raise UsageError(fault, "set CTX_INIT to '' for class-specific contexts, or CSC False")


def vectors_ahead(position: str | int, n_ctx: int) -> int:
    """How many of the context vectors are ahead of the class name; UsageError if there is no such
    position.
    """
    places = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}
    before = places.get(position) if isinstance(position, str) else position
    if before is None:  # a method may have a setting of another type than `Position`
        raise UsageError(
            f"CLASS_TOKEN_POSITION is {position!r}", f"give one of {', '.join(places)}"
        )
    return before


def move_class_tokens(
    ids: Tensor, n_ctx: int, classnames: list[str], position: str | int, tokenizer: Tokenizer
) -> tuple[Tensor, Tensor]:
    """Move the class names of rows [SOS][ctx][name][.][EOT] forward among the context vectors.

    With two vectors and the position `middle`, [SOS][1][2][red][fox][.][EOT] becomes
    [SOS][1][red][fox][2][.][EOT], and the vectors are at 1 and 4.

    Returns:
        the rows (C, positions), and the positions (C, n_ctx) of the context vectors in them.

    Raises UsageError if there is no such position.
    """
    before = vectors_ahead(position, n_ctx)
    rows = ids.clone()
    slots = torch.arange(n_ctx).repeat(len(ids), 1) + tokenizer.start
    for row, slot, length in zip(rows, slots, map(tokenizer.length, classnames), strict=True):
        moved = row[tokenizer.start + before :][: n_ctx - before + length]
        moved.copy_(moved.roll(length))
        slot[before:] += length
    return rows, slots


def check_layer(clip: CLIP, key: str, layer: int, towers: tuple[str, ...]) -> None:
    """Raise UsageError for the number of a layer, from 0, that one of the towers does not have."""
    layers = fewest_layers(clip, towers)
    if not 0 <= layer < layers:
        raise UsageError(
            f"{key} is {layer}",
            f"this backbone has {layers} layers from 0 on, so give 0 to {layers - 1}",
        )


def fewest_layers(clip: CLIP, towers: tuple[str, ...]) -> int:
    parts = {"text": text_blocks, "vision": image_blocks}
    return min(len(parts[tower](clip)) for tower in towers)


def check_depth(
    clip: CLIP, key: str, depth: int, towers: tuple[str, ...] = ("text", "vision"), least: int = 1
):
    """Raise UsageError for a prompt depth that one of the towers does not have."""
    most = fewest_layers(clip, towers)
    if not least <= depth <= most:
        raise UsageError(
            f"{key} is {depth}", f"this backbone has {most} layers, so it can be {least} to {most}"
        )
