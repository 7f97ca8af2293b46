from dassl.engine import TRAINER_REGISTRY

from .base.tuning import TuningTrainer


@TRAINER_REGISTRY.register()
class TPT(TuningTrainer):
    """Test-time prompt tuning: the views of an image should agree (Shu et al., NeurIPS 2022)."""
