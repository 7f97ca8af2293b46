from dassl.engine import TRAINER_REGISTRY

from .base.test_time import entropy_of_mean
from .base.tuning import TuningSettings, TuningTrainer


@TRAINER_REGISTRY.register()
class TPT(TuningTrainer):
    """Test-time prompt tuning: the views of an image should agree (Shu et al., NeurIPS 2022)."""

    Settings = TuningSettings

    def objective(self, logits, text):
        return entropy_of_mean(logits)
