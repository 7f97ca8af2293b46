from dassl.engine import TRAINER_REGISTRY

from .base.two_towers import TwoTowerMethod


@TRAINER_REGISTRY.register()
class IVLP(TwoTowerMethod):
    """Independent vision-language prompting: deep prompts in both towers, not coupled (MaPLe, Sec.
    3.2).
    """
