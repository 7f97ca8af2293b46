from dataclasses import dataclass

from dassl.engine import TRAINER_REGISTRY

from .base.feature_method import FeatureMethod, FeatureSettings, FeatureSpec
from .base.head import Head
from .base.projection import bottleneck
from .base.prompted import normalize


@dataclass(frozen=True)
class CLIPAdapterSettings(FeatureSettings):
    """RATIO is the share of the adapter's output in the image feature. Its hidden layer is
    REDUCTION times smaller.
    """

    AUGMENT_EPOCH: int = 20
    RATIO: int | float = 0.2
    REDUCTION: int = 4
    ranges = {"RATIO": (0, 1), "REDUCTION": (1, 4096)}


class FeatureAdapter(Head):
    """A bottleneck on image features, whose output is mixed with its input (Gao et al., 2023, Sec.
    3.2).
    """

    def __init__(self, width: int, hidden: int, ratio: float):
        super().__init__()
        self.ratio = ratio
        self.fc = bottleneck(width, hidden)

    def classify(self, image, text, scale):
        return scale * normalize(image.lerp(self.fc(image), self.ratio)) @ normalize(text).T


@TRAINER_REGISTRY.register()
class CLIPAdapter(FeatureMethod):
    """A small network on image features; text features stay as they are (Gao et al., IJCV 2024,
    online 2023).
    """

    Settings = CLIPAdapterSettings
    transfers = True
    spec = FeatureSpec(unit_text=False)
    checkpoint_folder = "clip_adapter"
    published = ("fc.0.weight", "fc.2.weight")

    def build_head(self, classes, width, rows):
        return FeatureAdapter(width, max(1, width // self.settings.REDUCTION), self.settings.RATIO)
