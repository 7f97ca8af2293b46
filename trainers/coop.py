from dataclasses import dataclass
from typing import ClassVar

from dassl.engine import TRAINER_REGISTRY
from torch import nn

from clip import CLIP

from .base import Method
from .base.prompts import WORDS, ContextPrompts, ContextSettings, sentence_context, unused_n_ctx
from .base.settings import MethodSettings


@dataclass(frozen=True)
class CoOpSettings(ContextSettings):
    CTX_INIT: str = ""


@TRAINER_REGISTRY.register()
class CoOp(Method):
    """Context Optimization (Zhou et al., IJCV 2022)."""

    Settings: ClassVar[type[MethodSettings]] = CoOpSettings
    published = ("ctx",)
    checkpoint_has_learner_only = True

    def start(self, clip: CLIP, classes: list[int]) -> tuple[list[str], nn.Parameter]:
        """The words before the class name, and the context vectors; `classes` is [C] for
        class-specific ones, or [].
        """
        given = self.settings.CTX_INIT
        return sentence_context(
            clip, self.settings.N_CTX, WORDS if given is True else given or "", *classes
        )

    def build_prompts(self, clip, classnames):
        words, ctx = self.start(clip, [len(classnames)] if self.settings.CSC else [])
        return ContextPrompts(clip, classnames, words, ctx, self.settings.CLASS_TOKEN_POSITION)

    def log_lines(self):
        return unused_n_ctx(self)
