import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor, nn
from torch.utils.data import DataLoader

from clip import ImageOutput
from common.errors import UsageError

from .base import PromptTrainer
from .base.data_use import Choice, record
from .base.prompted import PromptedCLIP, PromptLearner
from .base.settings import MethodSettings

TRIALS = 7 + 2 + 6  # values of C that `search` tries: powers of ten, the ends around the best, and halvings


@dataclass(frozen=True)
class LinearProbeSettings(MethodSettings):
    """C is the inverse strength of the L2 penalty; 0 asks for a search on the validation images."""

    C: int | float = 0.0
    ranges = {"C": (0, 1_000_000_000)}


class ProbeWeights(PromptLearner):
    """A weight vector and a bias for each class."""

    name = "linear_probe"

    def __init__(self, clip, classes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, clip.visual.output_dim))
        self.bias = nn.Parameter(torch.zeros(classes))

    def image(self, tower: ImageOutput, learned: bool) -> Tensor:
        return tower.feature.float()


class ProbedCLIP(PromptedCLIP):
    """Images -> logits by a linear classifier of the frozen image feature, which is not normalised."""

    prompt_learner: ProbeWeights

    def encode_text(self, image_features: Tensor) -> Tensor:
        """(classes, joint): the weights, which have the place of text features here."""
        return self.prompt_learner.weight

    def of_text(self, feature: Tensor) -> Tensor:
        return feature

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        with torch.autocast(image_features.device.type, enabled=False):
            return F.linear(image_features, text_features, self.prompt_learner.bias)


def fit(features: np.ndarray, labels: np.ndarray, c: float):
    """scikit-learn's logistic regression with at most 1000 steps of L-BFGS, as in CoOp's code.

    Args:
        features: (images, joint).
        labels: (images,), each class among them.
        c: the inverse strength of the L2 penalty.
    """
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a weak penalty may need more steps: the search does not choose it then
        return LogisticRegression(C=c, max_iter=1000).fit(features, labels)


def search(accuracy: Callable[[float], float]) -> float:
    """CoOp's choice of C: the best of seven powers of ten, then eight halvings of the two decades around it.

    Args:
        accuracy: of a probe with C = 10^x on the validation images, for x.

    Returns:
        x. Of equal powers of ten the largest is taken; of equal ends of an interval the lower one.
    """
    accuracy = cache(accuracy)
    best = max(map(float, range(6, -7, -2)), key=accuracy)
    low, high = best - 1, best + 1
    for _ in range(8):
        middle = (low + high) / 2
        if accuracy(low) < accuracy(high):
            low, best = middle, high
        else:
            high, best = middle, low
    return best


@TRAINER_REGISTRY.register()
class LinearProbe(PromptTrainer):
    """A linear classifier of the frozen image features, without text (Radford et al., 2021; search as in CoOp)."""

    Settings = LinearProbeSettings
    Model = ProbedCLIP
    saved_as = "linear_probe"
    transfers = False

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        if cfg.DATASET.SUBSAMPLE_CLASSES != "all":
            what = "LinearProbe has weights for the classes it was trained on: base-to-new has no meaning for it"
            raise UsageError(what, "set DATASET.SUBSAMPLE_CLASSES all")
        if cfg.OPTIM.MAX_EPOCH != 1:
            raise UsageError(f"OPTIM.MAX_EPOCH is {cfg.OPTIM.MAX_EPOCH}", "LinearProbe is fitted once: set it to 1")

    @cached_property
    def choices(self) -> list[Choice]:
        if self.settings.C:
            return super().choices
        what, images = "TRAINER.LINEARPROBE.C", self.val_images
        return [*super().choices, record(what, self.cfg, self.dataset_title, images, self.dm.dataset, TRIALS)]

    @cached_property
    def val_images(self) -> list:
        """The images that choose C: the few-shot validation images, of ImageNet as in CoOp's code.

        Raises:
            UsageError: the dataset has no validation images.
        """
        dataset, shots = self.dm.dataset, self.cfg.DATASET.NUM_SHOTS
        if not dataset.val:
            what = f"{self.dataset_title} has no validation images for the choice of C"
            raise UsageError(what, "set TRAINER.LINEARPROBE.C, for example to 1.0")
        if getattr(dataset, "val_is_test", False) and shots >= 1:  # as it is, it has all test images
            return dataset.generate_fewshot_dataset(dataset.val, num_shots=min(shots, 4))
        return dataset.val

    def build_prompts(self, clip, classnames):
        if len(classnames) < 2:
            raise UsageError(f"LinearProbe has {len(classnames)} class to choose from", "give it two or more")
        return ProbeWeights(clip, len(classnames))

    def run_epoch(self) -> None:
        """The only epoch: extract the features, choose C, fit, and keep the weights."""
        features, labels = self.features_of(self.dm.dataset.train_x)
        c = self.settings.C or self.choose_c(features, labels)
        probe = fit(features, labels, c)
        weight, bias = (torch.from_numpy(array).float() for array in (probe.coef_, probe.intercept_))
        if len(bias) == 1:  # of two classes scikit-learn has the second one's only
            weight, bias = (torch.cat([0 * tensor, tensor]) for tensor in (weight, bias))
        self.model.prompt_learner.load_state_dict({"weight": weight, "bias": bias})
        print(f"C {c:.4g}: {100 * probe.score(features, labels):.1f}% of the training images")

    def choose_c(self, features: np.ndarray, labels: np.ndarray) -> float:
        """C by `search` on the validation images."""
        val_features, val_labels = self.features_of(self.val_images)
        x = search(lambda x: fit(features, labels, 10**x).score(val_features, val_labels))
        return 10**x

    @torch.no_grad()
    def features_of(self, items: list) -> tuple[np.ndarray, np.ndarray]:
        """Features (images, joint) and labels (images,) under the test transform."""
        dataset, options = self.test_loader.dataset, self.cfg.DATALOADER
        images = type(dataset)(self.cfg, items, transform=dataset.transform)
        loader = DataLoader(images, batch_size=options.TEST.BATCH_SIZE, num_workers=options.NUM_WORKERS)
        batches = (self.parse_batch_test(batch) for batch in loader)
        features, labels = zip(*((self.model.image_features(x), y) for x, y in batches), strict=True)
        return torch.cat(features).cpu().numpy(), torch.cat(labels).cpu().numpy()
