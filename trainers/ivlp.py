from dassl.engine import TRAINER_REGISTRY

from .base import PromptTrainer
from .base.compat import TWO_TOWERS
from .base.prompts import TwoTowerSettings, two_tower_prompts


@TRAINER_REGISTRY.register()
class IVLP(PromptTrainer):
    """Independent vision-language prompting: deep prompts in both towers, not coupled (MaPLe, Sec. 3.2)."""

    Settings = TwoTowerSettings
    saved_as = "VLPromptLearner"
    published = TWO_TOWERS

    def build_prompts(self, clip, classnames):
        return two_tower_prompts(self, clip, classnames)
