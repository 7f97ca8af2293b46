from dataclasses import dataclass

from dassl.engine import TRAINER_REGISTRY

from .base.prompts import ContextSettings
from .base.teacher import TaughtMethod
from .coop import CoOp


@dataclass(frozen=True)
class KgCoOpSettings(ContextSettings):
    """W is the weight of the distance from the frozen CLIP. CTX_INIT is words, or True for `a photo
    of a`. ALPHA has no effect; the files of DePT's repository have it."""

    N_CTX: int = 4
    CTX_INIT: bool | str = True
    W: int | float = 8.0
    ALPHA: int | float = 1.0
    ranges = {"W": (0, 1_000_000)}


@TRAINER_REGISTRY.register()
class KgCoOp(TaughtMethod, CoOp):
    """Knowledge-guided Context Optimization: text features held near the frozen CLIP's (Yao et al.,
    CVPR 2023).
    """

    Settings = KgCoOpSettings
    published_sections = ("TRAINER.COOP",)
    published_unused = ("bias_vectors", "meta_net.linear1.*")
    teacher_templates = {"DescribableTextures": "a photo of a {}, a type of texture."}

    def loss(self, output, labels):
        """Cross-entropy, and the distance of the text features from the frozen CLIP's."""
        return self.distillation_loss(output, labels, self.settings.W)
