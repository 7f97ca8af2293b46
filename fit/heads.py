"""Heads on the features of one CLIP: they learn from images, answer, and are exported."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import trainers
from clip import reads_texts
from inference.classifier import PromptedClassifier
from inference.images import one_thread
from inference.options import LoadOptions
from trainers.base import TEMPLATE
from trainers.base.feature_method import FeatureMethod
from trainers.base.features import CachedOutput, Support
from trainers.base.method import Classes, Method
from trainers.base.prompted import normalize
from trainers.base.teacher import mean_text_features
from trainers.base.training import learn
from trainers.vision_probe import EnsembleHead, FrozenTower

from .candidates import (
    KERNEL,
    SENTENCES,
    VISION,
    VISION_ONLY,
    ZERO_SHOT,
    Candidate,
    Weighted,
    method_of_sum,
    settings_of,
)
from .plan import Check, Clock, ignore, steps

ANSWERED = 4096  # features that are answered at a time: some heads compare them with all images
PARTS = 5  # of the images, of which `overfit_ratio` leaves out one
Seen = tuple[Tensor, Tensor]  # features (images, width) and labels (images,) to learn from


class Heads:
    """Heads on the features of one CLIP.

    They take features from before the projection of the image tower (images, width), for the sake
    of those that learn the projection. If the backbone has none, they take its features (images,
    joint), and such heads are left out.

    Args:
        zero_shot: zero-shot CLIP for the classes, with sentences for classes or without.
    """

    def __init__(self, zero_shot: PromptedClassifier, seed: int = 0):
        self.zero_shot = zero_shot
        self.device = zero_shot.device
        self.clip = zero_shot.model_for().frozen
        self.seed = seed
        self.clock = Clock()  # of the candidate that is tried
        self.names = zero_shot.class_names
        self.classes = Classes(self.names, TEMPLATE, zero_shot.description.sentences)
        self.reads_names = reads_texts(self.clip)
        sentences = Method(zero_shot.cfg, self.classes, zero_shot.device).class_sentences(TEMPLATE)
        self.texts = {unit: self.encoded(sentences, unit) for unit in (False, True)}
        templates = [[TEMPLATE.replace("{}", name)] for name in self.names]
        self.fixed = {SENTENCES: self.texts[True], ZERO_SHOT: self.encoded(templates)}
        self.frozen_tower = FrozenTower(self.clip)
        self.projection = self.frozen_tower.projection
        self.tower = self.frozen_tower.model  # its image features are those that the heads take

    def encoded(self, texts: Sequence[Sequence[str]], unit: bool = False) -> Tensor:
        """`mean_text_features`; zeros without a text tower, so that zero-shot CLIP guesses."""
        if self.reads_names:
            return mean_text_features(self.clip, texts, unit)
        width = self.clip.visual.output_dim
        return torch.zeros(len(texts), width, device=self.device)

    def inputs(self, method: str, features: Tensor) -> Tensor:
        """The inputs of a method: features from before the projection, or those behind it
        (images, joint).
        """
        return self.frozen_tower.inputs(trainers.predicting()[method].Model, features)

    def method(self, candidate: Candidate, images: int) -> FeatureMethod:
        """The method of a candidate with a head that has seen nothing, for so many training
        images.
        """
        kind = trainers.predicting()[candidate.method]
        method = kind(settings_of(candidate), self.classes, self.device, images)
        assert isinstance(method, FeatureMethod)
        with self.device:
            head = method.build_prompts(self.clip, self.names)
            head.__dict__["installs"] = False  # it reads features: no copy of the towers
            method.model = method.Model(self.clip, head, "fast")
        if method.spec.reads_text:
            method.set_texts(self.texts[method.spec.unit_text])
        return method

    @one_thread()  # several wait for one another, above all on a machine that does other work, too
    def fit(self, candidate: Candidate, seen: Seen) -> FeatureMethod:
        """The method with a head that has learned from what it reads (`inputs`), and labels.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        if self.device.type == "cpu":  # torch.manual_seed takes longer than some heads
            torch.default_generator.manual_seed(self.seed)
        else:
            torch.manual_seed(self.seed)
        inputs, labels = seen
        method = self.method(candidate, len(labels))
        batches = method.begin(Support(inputs[None], labels))
        with redirect_stdout(io.StringIO()):
            learn(method, batches, method.cfg.OPTIM.MAX_EPOCH, self.clock.check)
        return method

    def learned(self, candidate: Candidate, seen: Seen) -> Callable[[Tensor], Tensor]:
        """From what the candidate reads of images (`inputs`) to logits (images, classes), after
        learning from the same and labels.
        """
        if candidate.method in self.fixed:
            matrix = self.clip.logit_scale.exp() * normalize(self.fixed[candidate.method]).T
            return lambda features: normalize(features) @ matrix
        return partial(answered, self.fit(candidate, seen))

    def answers(self, candidate: Candidate, seen: Seen, features: Tensor) -> Tensor:
        """Logits (images, classes) for features (images, width), after learning."""
        learned = self.learned(candidate, self.read(candidate, seen))
        return learned(self.inputs(candidate.method, features)).detach()

    def read(self, candidate: Candidate, seen: Seen) -> Seen:
        """The inputs of a candidate for images, and their labels."""
        features, labels = seen
        return self.inputs(candidate.method, features), labels

    def overfit_ratio(self, candidate: Candidate, seen: Seen) -> float:
        """The spread of the candidate's logits on images that it has not learned from, as a
        multiple of that on others. Each fifth image is left out, also if it is alone in its class;
        only heads without texts can learn so, and others count as 1.
        """
        if candidate.method not in VISION_ONLY:
            return 1.0
        features, labels = seen
        ratios = []
        for part in range(PARTS):
            out = torch.arange(len(labels), device=labels.device) % PARTS == part
            if out.any() and not out.all():
                answers = self.answers(candidate, (features[~out], labels[~out]), features)
                ratios.append(logit_std(answers[out]) / logit_std(answers[~out]))
        return sum(ratios) / len(ratios)

    def held_out(
        self,
        candidate: Candidate,
        seen: Seen,
        folds: NDArray[np.int64],
        deadline: float = math.inf,
        some: NDArray[np.int64] | None = None,
        check: Check = ignore,
    ) -> Tensor:
        """(repeats, images, classes): the logits of images whose folds (`choice.folds`) were left
        out.

        They are divided by the head's spread on the images that it has learned from: heads of fewer
        images have others, up to a hundred times smaller ones.

        Args:
            deadline: of `time.monotonic`.
            some: the places of the images that are answered, by default all.
            check: called after each fold.

        Raises:
            FloatingPointError: a loss or a logit is not finite.
            TooLong: the trainings would not end before the deadline.
            UsageError: there are too many images for the head, which learns from all in the end.
        """
        if candidate.method not in self.fixed:
            kind = trainers.predicting()[candidate.method]
            assert issubclass(kind, FeatureMethod)
            kind.check_size(len(seen[1]), len(self.names))
        asked = torch.arange(len(seen[1])) if some is None else torch.from_numpy(some)
        self.clock = Clock(deadline, len(folds) * (int(folds.max()) + 1))
        try:
            found = self.of_folds(candidate, seen, folds, asked, check)
        finally:
            self.clock = Clock()  # other trainings have no deadline
        if not found[:, torch.from_numpy(folds[0] >= 0)[asked]].isfinite().all():
            raise FloatingPointError(f"{candidate.name} gives logits that are not finite")
        return found

    def of_folds(
        self,
        candidate: Candidate,
        seen: Seen,
        folds: NDArray[np.int64],
        asked: Tensor,
        check: Check,
    ) -> Tensor:
        """`held_out`, for the `asked` places; NaN for images in no fold."""
        x, y = self.read(candidate, seen)
        found = torch.full((len(folds), len(asked), len(self.names)), torch.nan)
        each = list(product(range(len(folds)), range(folds.max() + 1)))
        for repeat, fold in steps(each, candidate.name):
            left_out = torch.from_numpy(folds[repeat] == fold)
            answers = self.learned(candidate, (x[~left_out], y[~left_out]))(x[asked]).detach()
            out = left_out[asked]
            found[repeat, out] = (answers[out] / logit_std(answers[~out])).cpu()
            self.clock.next()
            check(found)
        return found

    def classifier(
        self, weights: Weighted, seen: Seen, facts: Mapping[str, Any]
    ) -> PromptedClassifier:
        """The chosen classifier, which has learned from all images: a candidate, or an ensemble of
        linear ones.
        """
        first, _ = weights[0]
        if first.method in self.fixed and len(weights) == 1 and self.reads_names:
            sentences = self.zero_shot.description.sentences if first.method == SENTENCES else {}
            return self.exported(first.method, facts, sentences=sentences)
        method = self.fit_sum(weights, seen)
        return self.exported(type(method).__name__, facts, method)

    def fit_sum(self, weights: Weighted, seen: Seen) -> FeatureMethod:
        """One head that has learned: a candidate, or the weighted sum of several linear ones."""
        candidates = [candidate for candidate, _ in weights]
        if len(candidates) == 1 and candidates[0].method not in self.fixed:
            return self.fit(candidates[0], self.read(candidates[0], seen))
        factors = [float(f"{weight:.6g}") for _, weight in weights]  # for people
        names = [candidate.name for candidate in candidates]
        settings = {"MEMBERS": tuple(names), "WEIGHTS": tuple(factors)}
        method = self.method(Candidate(method_of_sum(candidates), settings), len(seen[1]))
        for candidate, weight in weights:
            self.add(candidate, weight, seen, method.head)
        return method

    def add(self, candidate: Candidate, weight: float, seen: Seen, head: Any) -> None:
        """Add a candidate that has learned to the head of a sum."""
        seen = self.read(candidate, seen)
        if candidate.method == VISION:
            learned = self.fit(candidate, seen).head
            head.mean.copy_(learned.mean)  # that of all such heads
            head.weight += weight * learned.weight
            head.bias += weight * learned.bias
        elif candidate.method == KERNEL:
            head.kernel = self.fit(candidate, seen).head.times(weight)
        else:
            axes = torch.eye(self.clip.visual.output_dim, device=head.weight.device)
            logits = self.learned(candidate, seen)(torch.cat([axes, -axes])).detach()
            there, back = logits.chunk(2)
            of_projected = head.of_projected if isinstance(head, EnsembleHead) else head.weight
            of_projected += weight * (there - back).T / 2
            head.bias += weight * (there + back).mean(dim=0) / 2

    def exported(
        self,
        name: str,
        facts: Mapping[str, Any],
        method: Method | None = None,
        **values: Any,
    ) -> PromptedClassifier:
        """The classifier of a method that has learned, or of a `fixed` one; `facts` are for
        people.
        """
        checkpoint: dict[str, Any] | None = None
        if method:
            values["settings"] = asdict(method.settings)
            metadata = {"method": name, "class_names": self.names, **values}
            state = method.saved_module().state_dict()
            checkpoint = {"state_dict": state, "epoch": 0, "metadata": metadata}
        description = replace(
            self.zero_shot.description, method=name, training=dict(facts), **values
        )
        options = LoadOptions(backbone=description.backbone, device=self.device.type)
        return PromptedClassifier(description, checkpoint, "the fit", options, self.clip)


def answered(method: FeatureMethod, inputs: Tensor) -> Tensor:
    """Logits (images, classes) of a method that has learned, for what it reads of images."""
    parts = inputs.split(ANSWERED)
    return torch.cat([method.model_inference(CachedOutput(part)) for part in parts]).detach()


def logit_std(logits: Tensor) -> float:
    """The mean over images of the standard deviation of logits (..., images, classes); 1 if they
    are all equal.
    """
    return float(logits.std(dim=-1, correction=0).mean()) or 1.0


def reads_names(method: str) -> bool:
    """Whether a method reads the names of classes."""
    kind = trainers.predicting()[method]
    return not issubclass(kind, FeatureMethod) or kind.spec.reads_text
