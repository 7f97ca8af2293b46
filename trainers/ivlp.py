"""Prompts of the two towers that are independent of each other (VPT, IVLP, PromptSRC)."""

from dataclasses import dataclass
from typing import Any, ClassVar

from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn

from clip import Edit, Schedule, TextPrompts, text_width, vision_width
from common.errors import UsageError

from .base.compat import TWO_TOWERS
from .base.method import Method
from .base.prompts import WORDS, TemplatePrompts, check_depth, gaussian, start_context
from .base.settings import MethodSettings
from .base.trainer import require_vit


class TowerPrompts(nn.Module):
    """Prompts of one tower for its first `depth` layers, each layer's own.

    Parameter names are those of published checkpoints: `VPT` for layer 0,
    `transformer.resblocks.<l>.VPT_shallow` for the deep prompts. `first` is False for the text
    tower, whose layer 0 has the context vectors.
    """

    def __init__(self, n: int, width: int, depth: int, first: bool = True):
        super().__init__()
        self.n = n
        if first and depth > 0:
            self.VPT = gaussian(n, width)
        layers = {
            str(layer): nn.ParameterDict({"VPT_shallow": gaussian(n, width)})
            for layer in range(1, depth)
        }
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleDict(layers)})

    def schedule(self) -> Schedule:
        """Each layer's prompts replace those of the layer before (deep VPT)."""
        first = getattr(self, "VPT", None)
        blocks: Any = self.transformer["resblocks"]
        deep = [Edit(self.n, *block.values()) for block in blocks.values()]
        return [Edit(add=first), *deep] if first is not None or deep else ()


class IndependentPrompts(TemplatePrompts):
    """Prompts of the two towers that are independent of each other (VPT, IVLP, PromptSRC).

    Args:
        text: how many prompts the text tower has at each of its first layers, and these layers; 0
            leaves plain words.
        vision: the same for the image tower.
        ctx_init: words before the class name.
    """

    def __init__(
        self,
        clip,
        classnames: list[str],
        text: tuple[int, int],
        vision: tuple[int, int],
        ctx_init: str,
    ):
        n_text, depth_text = text
        n_vision, depth_vision = vision
        words = ctx_init.replace("_", " ")
        ctx = None
        if depth_text:
            words, ctx = start_context(clip, n_text, ctx_init)
        super().__init__("{}.", classnames, clip, f"{words} ")
        self.ctx = ctx
        self.extra_modules: dict[str, Any] = {
            "image_encoder": TowerPrompts(n_vision, vision_width(clip), depth_vision),
            "text_encoder": TowerPrompts(n_text, text_width(clip), depth_text, first=False),
        }

    def text(self, image_features: Tensor) -> TextPrompts:
        return TextPrompts(self.ids, self.ctx, deep=self.extra_modules["text_encoder"].schedule())

    def vision(self) -> Schedule:
        return self.extra_modules["image_encoder"].schedule()


@dataclass(frozen=True)
class IVLPSettings(MethodSettings):
    """Prompts enter the first PROMPT_DEPTH layers of a tower. A depth of 0 means no prompts in that
    tower.
    """

    N_CTX_VISION: int = 2
    N_CTX_TEXT: int = 2
    CTX_INIT: str = WORDS
    PROMPT_DEPTH_VISION: int = 9
    PROMPT_DEPTH_TEXT: int = 9
    # 0, as in the published YAML of language-only prompts, only at depth 0
    ranges = {"N_CTX_VISION": (0, 256)}

    def check(self):
        if self.N_CTX_VISION == 0 < self.PROMPT_DEPTH_VISION:
            fault = f"N_CTX_VISION is 0, and PROMPT_DEPTH_VISION is {self.PROMPT_DEPTH_VISION}"
            raise UsageError(fault, "set both to 0 for no vision prompts, or raise N_CTX_VISION")
        if self.PROMPT_DEPTH_VISION == self.PROMPT_DEPTH_TEXT == 0:
            raise UsageError(
                "PROMPT_DEPTH_VISION and PROMPT_DEPTH_TEXT are 0",
                "raise one of them: nothing is learned",
            )


@TRAINER_REGISTRY.register()
class IVLP(Method):
    """Independent vision-language prompting: deep prompts in both towers, not coupled (MaPLe, Sec.
    3.2).
    """

    Settings: ClassVar[type[MethodSettings]] = IVLPSettings
    checkpoint_folder = "VLPromptLearner"
    published = TWO_TOWERS

    def build_prompts(self, clip, classnames):
        s = self.settings
        require_vit(clip, type(self).__name__, self.cfg.MODEL.BACKBONE.NAME)
        for tower in ("vision", "text"):
            key = f"PROMPT_DEPTH_{tower.upper()}"
            check_depth(clip, f"TRAINER.{self.section()}.{key}", getattr(s, key), (tower,), least=0)
        text = (s.N_CTX_TEXT, s.PROMPT_DEPTH_TEXT)
        vision = (s.N_CTX_VISION, s.PROMPT_DEPTH_VISION)
        return IndependentPrompts(clip, classnames, text, vision, s.CTX_INIT)
