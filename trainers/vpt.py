from dassl.engine import TRAINER_REGISTRY

from .base import PromptTrainer, require_vit
from .prompts import VISION, IndependentPrompts, check_depth

WORDS = "a photo of a"


@TRAINER_REGISTRY.register()
class VPT(PromptTrainer):
    """Visual Prompt Tuning of CLIP's image tower (Jia et al., ECCV 2022); the text is `a photo of a {class}.`

    Settings: N_CTX_VISION, PROMPT_DEPTH_VISION (1 is shallow), PREC. CTX_INIT is there for published YAMLs.
    """

    defaults = {"N_CTX_VISION": 2, "CTX_INIT": WORDS, "PREC": "fp16", "PROMPT_DEPTH_VISION": 1}
    keys = VISION

    def build_prompts(self, clip, classnames):
        vpt = self.settings
        require_vit(clip, "VPT", self.cfg.MODEL.BACKBONE.NAME)
        check_depth(clip, "TRAINER.VPT.PROMPT_DEPTH_VISION", vpt.PROMPT_DEPTH_VISION, ("vision",))
        if vpt.CTX_INIT.replace("_", " ") != WORDS:
            print(f"VPT's words are always {WORDS!r}: TRAINER.VPT.CTX_INIT {vpt.CTX_INIT!r} is not used")
        return IndependentPrompts(clip, classnames, 0, 0, vpt.N_CTX_VISION, vpt.PROMPT_DEPTH_VISION, WORDS)
