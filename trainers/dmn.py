from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Literal

import torch
from dassl.engine import TRAINER_REGISTRY
from torch import Tensor
from torch.utils.data import DataLoader

from common.errors import UsageError

from .base.data_use import fit_phase
from .base.features import CachedFeatures
from .base.prompted import normalize
from .base.test_time import TemplatesSettings, ViewsMethod, in_random_order


@dataclass(frozen=True)
class DMNSettings(TemplatesSettings):
    """The memory keeps MEMORY_SIZE images of a class, and BETA is how sharply they are read.
    SELECTION is the share of the views that say the class of an image. SUPPORT adds the training
    images. WEIGHTS are those of the texts, of the memory and of the support. CHOOSE_ON says how
    they were found; oracle: on test images, which marks the results.
    """

    VIEWS: int = 32
    MEMORY_SIZE: int = 50
    BETA: int | float = 5.5
    SELECTION: float = 0.1
    SUPPORT: bool = False
    WEIGHTS: tuple[int | float, ...] = (1, 1, 1)
    CHOOSE_ON: Literal["nothing", "oracle"] = "nothing"
    ranges = {"MEMORY_SIZE": (1, 10_000), "SELECTION": (0, 1), "BETA": (0, 1e6)}

    def check(self):
        super().check()
        if len(self.WEIGHTS) != 3 or min(self.WEIGHTS) < 0 or not self.WEIGHTS[0]:
            raise UsageError(f"WEIGHTS is {list(self.WEIGHTS)}", "give three numbers: [1, 1, 1]")


@TRAINER_REGISTRY.register()
class DMN(ViewsMethod):
    """A memory of confident test images, and one of training images (Zhang et al., CVPR 2024).

    Both are read with the attention of the present image; the published form without training.
    """

    Settings = DMNSettings
    kind = "transductive"
    least_area = 0.5
    found_by_oracle = ("WEIGHTS",)
    caveat = "its published weights were searched on the test images of each dataset"

    @property
    def templates(self):
        return list(self.settings.TEMPLATES or [self.dataset_template])

    def order(self, images):
        return in_random_order(images, self.cfg.SEED)

    def new_state(self):
        texts = self.texts
        size = self.settings.MEMORY_SIZE
        return {
            "FEATURES": texts.new_zeros(len(texts), size, texts.shape[1]),
            "ENTROPIES": texts.new_full((len(texts), size), inf),  # inf: an empty slot
        }

    def logits_of_features(self, features, state):
        """The logarithms of weighted probabilities, instead of the logits of the tower."""
        image = features[0]
        p = self.logits(features).softmax(dim=1)
        self.write(image, p, state)
        memory = state["FEATURES"], state["ENTROPIES"].isfinite()
        known = [(self.texts[:, None], torch.ones_like(self.texts[:, :1], dtype=torch.bool))]
        of_texts, of_memory, of_support = self.settings.WEIGHTS
        if not self.settings.SUPPORT:
            return (of_texts * p[0] + of_memory * self.read(image, [memory, *known])).log()
        known.append(self.support)
        dynamic = self.read(image, [memory, *known])
        return (of_texts * p[0] + of_memory * dynamic + of_support * self.read(image, known)).log()

    def write(self, image, p, state):
        """Keep an image (joint,) by the probabilities of its views (views, classes): in an empty
        slot of its class, or instead of the least certain one there.
        """
        entropy = -(p * (p + 1e-6).log()).sum(dim=1)
        number = max(1, int(len(p) * self.settings.SELECTION))
        mean = p[entropy.argsort(stable=True)[:number]].mean(dim=0)
        of_class = int(mean.argmax())
        entropies = state["ENTROPIES"][of_class]
        entropy = -(mean * (mean + 1e-8).log()).sum()
        slot = int(entropies.argmax())  # the first empty one, if there is one
        if entropy < entropies[slot]:
            entropies[slot] = entropy
            state["FEATURES"][of_class, slot] = image

    def read(self, image, memories):
        """(classes,): the probabilities of the classes, by what an image (joint,) attends to in
        memories: rows (classes, slots, joint), and whether a slot has one, (classes, slots).
        """
        rows = torch.cat([rows for rows, _ in memories], dim=1)
        filled = torch.cat([filled for _, filled in memories], dim=1)
        weights = (-self.settings.BETA * (1 - rows @ image)).exp() * filled
        attended = normalize((weights[..., None] * rows).sum(dim=1))
        return self.model.logits(image[None], attended)[0].softmax(dim=0)

    @cached_property
    def support(self):
        """Unit features (classes, most, joint) of the training images, and which of these there
        are, (classes, most).
        """
        if self.images is None:
            fault = "DMN with SUPPORT reads the training images of a run"
            raise UsageError(fault, "set TRAINER.DMN.SUPPORT False")
        tests = self.images.test_loader.dataset
        items = self.images.dataset.train_x
        images = type(tests)(self.cfg, items, transform=self.test_transform(self.cfg).centre)
        cached = CachedFeatures(self.model, DataLoader(images, batch_size=100), None)
        features = normalize(cached.tensor().float().to(self.device))
        return by_class(features, cached.labels, len(self.texts))

    @cached_property
    def inherited_phases(self):
        if not self.settings.SUPPORT or self.images is None:
            return ()
        dataset = self.images.dataset
        return [fit_phase(self.cfg, self.dataset_title, dataset, len(self.class_names))]


def by_class(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Features (images, joint) by their labels: (classes, slots, joint), and whether a slot has
    one, (classes, slots).
    """
    slots = int(torch.bincount(labels, minlength=classes).max())
    rows = features.new_zeros(classes, slots, features.shape[1])
    used = torch.zeros(classes, slots, dtype=torch.bool, device=features.device)
    for label in range(classes):
        own = features[labels.to(features.device) == label]
        rows[label, : len(own)] = own
        used[label, : len(own)] = True
    return rows, used
