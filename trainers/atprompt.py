from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from clip import TextPrompts, text_width, tokenizer_of, word_table
from common.errors import UsageError

from .base import Method
from .base.plugin import plugin
from .base.prompted import PromptedCLIP
from .base.prompts import TemplatePrompts
from .base.settings import MethodSettings

BASES = ("CoOp", "CoCoOp", "MaPLe")
MOST = 3  # attribute words
STD = 0.01  # of the vectors before them at the start
# Published for each dataset
ATTRIBUTES = {
    **dict.fromkeys(
        ("ImageNet", "ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR"), ["color", "shape"]
    ),
    "Caltech101": ["shape", "size"],
    "OxfordPets": ["playfulness", "energy"],
    "StanfordCars": ["luxury"],
    "OxfordFlowers": ["color", "habitat", "growth"],
    "Food101": ["flavor", "preparation"],
    "FGVCAircraft": ["design", "range"],
    "SUN397": ["function"],
    "DescribableTextures": ["pattern", "color", "design"],
    "EuroSAT": ["habitat"],
    "UCF101": ["precision"],
}


@dataclass(frozen=True)
class ATPromptSettings(MethodSettings):
    """ATTRIBUTES are 1 to 3 words; [] for the published ones of the dataset. N_ATT vectors are
    learned before each. As published, a word keeps its first token alone; with WHOLE_WORDS all.
    """

    ATTRIBUTES: list[str] = field(default_factory=list)
    N_ATT: int = 2
    WHOLE_WORDS: bool = False
    ranges = {"N_ATT": (1, 64)}

    def check(self):
        words = self.ATTRIBUTES
        if len(words) > MOST or not all(word.strip() for word in words):
            raise UsageError(
                f"ATTRIBUTES is {words}", f"give 1 to {MOST} words, or [] for those published"
            )
        if getattr(self, "CSC", False):
            raise UsageError("CSC is True, and ATPrompt shares its context", "set it to False")
        if getattr(self, "CLASS_TOKEN_POSITION", "end") != "end":
            fault = f"CLASS_TOKEN_POSITION is {self.CLASS_TOKEN_POSITION!r}"
            raise UsageError(f"{fault}, and ATPrompt has the class name at the end", "give end")
        if hasattr(self, "PROMPT_DEPTH") and self.N_ATT != self.N_CTX:
            fault = f"N_ATT is {self.N_ATT}, and N_CTX {self.N_CTX}"
            raise UsageError(f"{fault}: with MaPLe they are equal", "give the same number twice")
        super().check()


class AnchoredCLIP(PromptedCLIP):
    """A method's model, whose context vectors follow attribute words with vectors of their own."""

    prompt_learner: Any

    def text_prompts(self, image_features: Tensor) -> TextPrompts:
        """The method's prompts, whose `ctx` (n, width) is the end of a longer prefix."""
        prompts = super().text_prompts(image_features)
        ctx: Any = prompts.ctx
        learner = self.prompt_learner
        parts = []
        for number in range(1, learner.attributes + 1):
            parts.append(learner.get_parameter(f"ctx_att{number}"))
            parts.append(learner.get_buffer(f"word{number}"))
        parts = [part.to(ctx).expand(*ctx.shape[:-2], -1, -1) for part in parts]
        return replace(prompts, ctx=torch.cat([*parts, ctx], dim=-2), slots=None)


class ATPromptMethod(Method):
    """A method, in front of its class, with attribute words in its prompt."""

    @cached_property
    def settings(self):
        return replace(super().settings, CTX_INIT="")  # as published, words start no vector

    @property
    def attributes(self) -> list[str]:
        words = self.settings.ATTRIBUTES or ATTRIBUTES.get(self.cfg.DATASET.NAME)
        if not words:
            fault = f"ATPrompt has no attribute words for {self.dataset_title}"
            raise UsageError(fault, f"give TRAINER.{self.section()}.ATTRIBUTES \"['color']\"")
        return words

    def build_prompts(self, clip, classnames):
        learner = super().build_prompts(clip, classnames)
        width = text_width(clip)
        for number in range(1, MOST + 1):
            vectors = torch.empty(self.settings.N_ATT, width).normal_(std=STD)
            learner.register_parameter(f"ctx_att{number}", nn.Parameter(vectors))
        learner.attributes = len(self.attributes)
        learner.ids = TemplatePrompts("{}.", classnames, clip, self.words_ahead).ids
        tokenizer = tokenizer_of(clip)
        place = tokenizer.start
        for number, word in enumerate(self.attributes, start=1):
            place += self.settings.N_ATT
            length = tokenizer.length(word) if self.settings.WHOLE_WORDS else 1
            tokens = word_table(clip)(learner.ids[0, place : place + length])
            learner.register_buffer(f"word{number}", tokens.detach(), persistent=False)
            place += length
        return learner

    @property
    def words_ahead(self) -> str:
        """The words in front of a class name; an X for each learned vector."""
        before = "X " * self.settings.N_ATT
        parts = [f"{before}{word} " for word in self.attributes]
        return "".join(parts) + "X " * self.settings.N_CTX

    def log_lines(self):
        words = ", ".join(self.attributes)
        return [f"Attribute words: {words}", *super().log_lines()]


@plugin("ATPrompt")
def atprompt(base: type[Method]) -> type[Method] | None:
    """Attribute-anchored prompts over a method (Li et al., ICCV 2025)."""
    name = base.__name__
    if name not in BASES:
        return None
    inner = "" if base.checkpoint_has_learner_only else "prompt_learner."

    @dataclass(frozen=True)
    class Both(ATPromptSettings, base.Settings): ...  # type: ignore[name-defined, misc]

    class Trainer(ATPromptMethod, base):  # type: ignore[valid-type, misc]
        __doc__ = f"{name} with attribute words in its prompt (ATPrompt; ICCV 2025)."
        Settings = Both
        Model = type("Model", (AnchoredCLIP, base.Model), {})
        published = (*base.published, *(f"{inner}ctx_att{n}" for n in range(1, MOST + 1)))
        config_folder = f"ATPrompt+{name}"

    return Trainer
