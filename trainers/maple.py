from dassl.engine import TRAINER_REGISTRY

from .base.coupled import CoupledMethod


@TRAINER_REGISTRY.register()
class MaPLe(CoupledMethod):
    """Multi-modal Prompt Learning (Khattak et al., CVPR 2023)."""
