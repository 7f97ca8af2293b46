from dataclasses import dataclass

from dassl.engine import TRAINER_REGISTRY

from .base import Method, require_vit
from .base.compat import VISION
from .base.prompts import WORDS, check_depth
from .base.settings import MethodSettings
from .ivlp import IndependentPrompts


@dataclass(frozen=True)
class VPTSettings(MethodSettings):
    """A depth of 1 is shallow VPT. CTX_INIT is not used; published YAML files have it."""

    N_CTX_VISION: int = 2
    CTX_INIT: str = WORDS
    PROMPT_DEPTH_VISION: int = 1
    ranges = {"PROMPT_DEPTH_VISION": (1, 100)}


@TRAINER_REGISTRY.register()
class VPT(Method):
    """Visual Prompt Tuning of CLIP's image tower (Jia et al., ECCV 2022); the text is `a photo of a
    {class}.`
    """

    Settings = VPTSettings
    published = VISION

    def build_prompts(self, clip, classnames):
        vpt = self.settings
        require_vit(clip, "VPT", self.cfg.MODEL.BACKBONE.NAME)
        check_depth(clip, "TRAINER.VPT.PROMPT_DEPTH_VISION", vpt.PROMPT_DEPTH_VISION, ("vision",))
        return IndependentPrompts(
            clip, classnames, (0, 0), (vpt.N_CTX_VISION, vpt.PROMPT_DEPTH_VISION), WORDS
        )

    def log_lines(self):
        given = self.settings.CTX_INIT
        unused = f"VPT's words are always {WORDS!r}: TRAINER.VPT.CTX_INIT {given!r} is not used"
        return [unused] if given.replace("_", " ") != WORDS else []
