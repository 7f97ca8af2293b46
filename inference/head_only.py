"""A classifier of images whose tower has run before: `tools/embed.py` keeps what it computed."""

from collections.abc import Sequence

from torch import Tensor

from common.errors import UsageError
from trainers.base.features import CachedOutput
from trainers.base.prompted import PromptedCLIP
from trainers.vision_probe import FrozenTower, width_of

from .classifier import PromptedClassifier
from .predictions import Predictions


class HeadOnly:
    """What follows the image tower of a classifier.

    Raises:
        UsageError: the method changes the tower, or reads more of it than its feature.
    """

    def __init__(self, classifier: PromptedClassifier):
        model = classifier.model_for()
        is_frozen = model.features_are_frozen and not hasattr(classifier.transform, "count")
        if not is_frozen:
            fault = f"{classifier.method} has an image tower of its own"
            raise UsageError(fault, "give it the images, and no bank of CLIP's features")
        self.classifier = classifier
        self.tower = FrozenTower(model.frozen)
        self.width = width_of(model.frozen)  # of the features before the projection

    def before(self, pixels: Tensor) -> Tensor:
        """Images (images, 3, H, W) -> their features before the projection of the tower, if it has
        one: (images, width).
        """
        model = self.tower.model
        return self.classifier._each(
            pixels, lambda part: model.image_output(part).feature.float(), self.width
        )

    def features(self, before: Tensor) -> Tensor:
        """`PromptedClassifier.features`, from those of `before`."""
        model = self.classifier.model_for()
        return self.classifier._each(
            before,
            lambda part: model.image_features(self.output(model, part)),
            self.classifier.width,
        )

    def predict(self, before: Tensor, class_names: Sequence[str] | None = None) -> Predictions:
        """`PromptedClassifier.predict`, from the features of `before`."""
        self.check_width(before.shape[1])
        method = self.classifier._method_for(class_names)
        logits = self.classifier._logits(
            method, before, lambda part: method.model_inference(self.output(method.model, part))
        )
        return self.classifier.predictions(logits, class_names)

    def check_width(self, width: int) -> None:
        """Raise UsageError for features of another width than the tower's."""
        if width != self.width:
            fault = f"features of {width} numbers are not of {self.classifier.source}"
            raise UsageError(fault, f"its tower has {self.width}: embed again")

    def output(self, model: PromptedCLIP, before: Tensor) -> CachedOutput:
        return CachedOutput(self.tower.inputs(type(model), before))
