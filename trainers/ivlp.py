from dassl.engine import TRAINER_REGISTRY

from .base import PromptTrainer
from .prompts import TWO_TOWERS, two_tower_prompts


@TRAINER_REGISTRY.register()
class IVLP(PromptTrainer):
    """Independent vision-language prompting: deep prompts in both towers, not coupled (MaPLe, Sec. 3.2).

    Settings: N_CTX_VISION, N_CTX_TEXT, CTX_INIT, PROMPT_DEPTH_VISION and PROMPT_DEPTH_TEXT (0: none there), PREC.
    """

    defaults = {
        "N_CTX_VISION": 2,
        "N_CTX_TEXT": 2,
        "CTX_INIT": "a photo of a",
        "PREC": "fp16",
        "PROMPT_DEPTH_VISION": 9,
        "PROMPT_DEPTH_TEXT": 9,
    }
    saved_as = "VLPromptLearner"
    keys = TWO_TOWERS

    def build_prompts(self, clip, classnames):
        return two_tower_prompts(self, clip, classnames)
