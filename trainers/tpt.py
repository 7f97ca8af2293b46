from dassl.engine import TRAINER_REGISTRY

from .base.tuning import TuningMethod


@TRAINER_REGISTRY.register()
class TPT(TuningMethod):
    """Test-time prompt tuning: the views of an image should agree (Shu et al., NeurIPS 2022)."""
