from dassl.engine import TRAINER_REGISTRY

from .base.coupled import CoupledTrainer


@TRAINER_REGISTRY.register()
class MaPLe(CoupledTrainer):
    """Multi-modal Prompt Learning (Khattak et al., CVPR 2023)."""
