from dassl.engine import TRAINER_REGISTRY

from .base.prompts import TwoTowerTrainer


@TRAINER_REGISTRY.register()
class IVLP(TwoTowerTrainer):
    """Independent vision-language prompting: deep prompts in both towers, not coupled (MaPLe, Sec.
    3.2).
    """
