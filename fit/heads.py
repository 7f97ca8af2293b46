"""The candidates: zero-shot CLIP, and every head of this project over a small grid of its
settings.
"""

import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from yacs.config import CfgNode

import trainers
from clip.digest import Key
from common.cache import DiskCache
from common.errors import UsageError
from inference.classifier import PromptedClassifier
from inference.description import configuration
from inference.images import one_thread
from inference.options import LoadOptions
from trainers.base import TEMPLATE
from trainers.base.feature_method import FeatureMethod
from trainers.base.features import CachedOutput, Support, get_tensor, put_tensor
from trainers.base.method import Classes, Method
from trainers.base.projection import ProjectedCLIP
from trainers.base.prompted import PromptedCLIP, normalize
from trainers.base.teacher import cache_folder, mean_text_features
from trainers.base.training import learn

ENSEMBLE = "Linear"  # a sum of those below
# Which learn nothing: by a template, and by the user's sentences
ZERO_SHOT = "ZeroshotCLIP"
SENTENCES = "CuPL"
# In features of unit length
LINEAR = (
    ZERO_SHOT,
    SENTENCES,
    "CLAP",
    "ZSLP",
    "SSText",
    "TaskRes",
    "GDA",
    "LPPlusPlus",
)
COMPUTED = ZERO_SHOT, SENTENCES, "GDA", "ProKeR"  # from all images at once, without steps
CAREFUL = "CLAP", "ZSLP", "TaskRes"  # heads that start at zero-shot CLIP and stay near it
# Of the default ensemble; chosen on other draws than those of docs/own_classes.md
ZERO_SHOT_SHARE = 1 / 4
MISLED = 4.0  # nats; likewise
BATCH = 256  # features of a step
# Bytes of the logits of all heads that are kept, and of one
LIMIT = 1e9
MOST_KEPT = 50e6
SETTLED = 1.0  # seconds of trainings that say how long others take
Pairs = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A method with settings to try.

    Attributes:
        method: its registered name.
        settings: of TRAINER.<NAME>.
        training: keys of OPTIM, of a head that learns by gradients.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        values = {**self.settings, **self.training}
        return " ".join(
            [self.method, *(f"{key} {value}" for key, value in values.items() if key in SHOWN)]
        )


SHOWN = ("ALPHA", "BETA", "LAMBDA", "RULE", "C", "STEP", "LR", "RATIO", "RESIDUAL_SCALE")
SGD = {"NAME": "sgd", "WEIGHT_DECAY": 0.0, "MAX_EPOCH": 40}
ADAM = {"NAME": "adam", "WEIGHT_DECAY": 0.0, "MAX_EPOCH": 40}
ONE = {"AUGMENT_EPOCH": 1}
STEPS = {"NAME": "adam", "ADAM_EPS": 1e-4, "WEIGHT_DECAY": 0.0, "MAX_EPOCH": 1}
TIP_F = ADAM | {"NAME": "adamw", "LR": 0.001, "ADAM_EPS": 1e-4}
CANDIDATES = (  # the first one of a method has its defaults
    Candidate(ZERO_SHOT),
    Candidate(SENTENCES),
    *(Candidate("CLAP", ONE, SGD | {"LR": lr}) for lr in (0.1, 0.3, 1.0)),
    *(Candidate("ZSLP", ONE, SGD | {"LR": lr}) for lr in (0.3, 1.0)),
    *(Candidate("SSText", {"RULE": rule}) for rule in ("SStext", "by_performance")),
    *(
        Candidate("TaskRes", {"RESIDUAL_SCALE": scale, **ONE}, ADAM | {"LR": 0.002})
        for scale in (8.0, 20.0)
    ),
    *(Candidate("GDA", {"ALPHA": alpha, **ONE}) for alpha in (1.0, 10.0, 100.0)),
    *(
        Candidate("TipAdapter", {"ALPHA": alpha, "BETA": 5.5, **ONE})
        for alpha in (1.0, 10.0, 100.0)
    ),
    Candidate("ProKeR", {"BETA": 2.0, "LAMBDA": 0.1, **ONE}),
    *(Candidate("LPPlusPlus", {"STEP": step}) for step in (100, 30)),
    Candidate("LinearProbe", {"C": 0.1}),
    *(Candidate("CLIPAdapter", ONE, ADAM | {"LR": lr}) for lr in (0.003, 0.01)),
    *(
        Candidate("TipAdapterF", {"ALPHA": alpha, "INIT_ALPHA": alpha, "BETA": 1.0, **ONE}, TIP_F)
        for alpha in (10.0, 50.0)
    ),
    Candidate("ProLIP", {"STEPS": 100, **ONE}, STEPS | {"LR": 0.001}),
    Candidate("RLA", {"STEPS": 100, **ONE}, STEPS | {"LR": 0.003}),
)


def members(candidates: Sequence[Candidate], excess: float) -> dict[int, float]:
    """The candidates that an ensemble may have, by their places, with their weights if nothing was
    held out.

    Args:
        candidates: the first is zero-shot CLIP.
        excess: the cross-entropy of zero-shot CLIP on the training images, which it has not learned
            from, less that of guessing, in nats. If it is above MISLED, the default is heads that
            go far from zero-shot CLIP.
    """
    linear = {place: one.method for place, one in enumerate(candidates) if one.method in LINEAR}
    careful = [place for place, method in linear.items() if method in CAREFUL] or [*linear][1:]
    weights = dict.fromkeys(linear, 0.0)
    if excess > MISLED:  # the last candidate of a method takes the largest steps
        far = {method: place for place, method in linear.items() if method in (*CAREFUL, "SSText")}
        careful = [*far.values()] or careful
    share = ZERO_SHOT_SHARE if excess <= MISLED else 0.0
    if not careful:
        return weights | {0: 1.0}
    return weights | {0: share} | dict.fromkeys(careful, (1 - share) / len(careful))


class TooLong(UsageError):
    """A candidate would not end in time."""


class Clock:
    """How long the trainings of a candidate take, from those that have ended.

    Args:
        deadline: of `time.monotonic`.
        trainings: how many there are.
    """

    def __init__(self, deadline: float = math.inf, trainings: int = 1):
        self.deadline = deadline
        self.trainings = trainings
        self.began = time.monotonic()
        self.ended = 0

    def next(self) -> None:
        """A training has ended."""
        self.ended += 1
        self.check(0)

    def check(self, share: float) -> None:
        """Raise TooLong if the trainings would not end before the deadline; `share` of the present
        one has ended.
        """
        now = time.monotonic()
        spent = now - self.began
        left = self.deadline - now
        needed = spent / (self.ended + share) * self.trainings
        if spent > SETTLED and needed - spent > left:
            what = (
                f"it takes about {needed / 60:.1f} minutes, and {max(0, left + spent) / 60:.1f} "
                "are left"
            )
            raise TooLong(what, "raise --minutes")


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
        self.clip = zero_shot.model_for().frozen
        self.seed = seed
        self.clock = Clock()  # of the candidate that is tried
        # For a fit that is killed
        self.cache = DiskCache(cache_folder(), "heads", "logits of heads", LIMIT)
        self.names = zero_shot.class_names
        self.classes = Classes(self.names, TEMPLATE, zero_shot.description.sentences)
        sentences = Method(zero_shot.cfg, self.classes, zero_shot.device).class_sentences(TEMPLATE)
        self.texts = {
            unit: mean_text_features(self.clip, sentences, unit) for unit in (False, True)
        }
        templates = [[TEMPLATE.replace("{}", name)] for name in self.names]
        self.fixed = {
            SENTENCES: self.texts[True],
            ZERO_SHOT: mean_text_features(self.clip, templates),
        }
        try:
            self.projection: FeatureMethod | None = self.method(Candidate("RLA"), 1)
        except UsageError:
            self.projection = None

    @property
    def tower(self) -> PromptedCLIP:
        """The model whose `image_output` has the features that the heads take."""
        return self.projection.model if self.projection else self.zero_shot.model_for()

    def inputs(self, method: str, features: Tensor) -> Tensor:
        """What a method reads of features from before the projection: these, or those behind it
        (images, joint).
        """
        if self.projection is None or issubclass(
            trainers.predicting()[method].Model, ProjectedCLIP
        ):
            return features
        return self.projection.head.project(features).detach()

    def method(self, candidate: Candidate, images: int) -> FeatureMethod:
        """The method of a candidate with a head that has seen nothing, for so many training
        images.
        """
        kind = trainers.predicting()[candidate.method]
        method = kind(settings_of(candidate), self.classes, self.zero_shot.device, images)
        assert isinstance(method, FeatureMethod)
        with self.zero_shot.device:
            method.model = method.Model(
                self.clip, method.build_prompts(self.clip, self.names), "fast"
            )
        if method.spec.reads_text:
            method.set_texts(self.texts[method.spec.unit_text])
        return method

    @one_thread()  # several wait for one another, above all on a machine that does other work, too
    def fit(self, candidate: Candidate, features: Tensor, labels: Tensor) -> FeatureMethod:
        """The method with a head that has learned from features (images, width) and labels
        (images,).

        Raises:
            FloatingPointError: a loss is not finite.
        """
        torch.manual_seed(self.seed)
        method = self.method(candidate, len(labels))
        batches = method.begin(Support(self.inputs(candidate.method, features)[None], labels))
        with redirect_stdout(io.StringIO()):
            learn(method, batches, method.cfg.OPTIM.MAX_EPOCH, self.clock.check)
        return method

    def learned(
        self, candidate: Candidate, seen: tuple[Tensor, Tensor]
    ) -> Callable[[Tensor], Tensor]:
        """From what the candidate reads of images (`inputs`) to logits (images, classes), after
        learning from features and labels."""
        if candidate.method in self.fixed:
            matrix = self.clip.logit_scale.exp() * normalize(self.fixed[candidate.method]).T
            return lambda features: normalize(features) @ matrix
        method = self.fit(candidate, *seen)
        return lambda features: method.model_inference(CachedOutput(features))

    def answers(
        self, candidate: Candidate, seen: tuple[Tensor, Tensor], features: Tensor
    ) -> Tensor:
        """Logits (images, classes) for features (images, width), after learning from the features
        and labels `seen`.
        """
        return self.learned(candidate, seen)(self.inputs(candidate.method, features)).detach()

    def held_out(
        self,
        candidate: Candidate,
        features: Tensor,
        labels: Tensor,
        held: NDArray[Any],
        deadline: float = math.inf,
    ) -> Tensor:
        """(repeats, images, classes): the logits of images whose folds `held` were left out
        (`choice.folds`).

        They are divided by the head's spread: heads of fewer images have others, up to a hundred
        times smaller ones.

        Args:
            deadline: of `time.monotonic`.

        Raises:
            FloatingPointError: a loss or a logit is not finite.
            TooLong: the trainings would not end before the deadline.
        """
        found = torch.full((*held.shape, len(self.names)), torch.nan)
        key = self.key(candidate, features, labels, held)
        kept = get_tensor(self.cache, key, tuple(found.shape), found.dtype)
        if kept is not None:
            return kept
        folds = int(held.max()) + 1
        self.clock = Clock(deadline, folds * len(held))
        try:
            for row, logits in zip(torch.from_numpy(held), found, strict=True):
                for fold in range(folds):
                    out = row == fold
                    answers = self.answers(candidate, (features[~out], labels[~out]), features)
                    logits[out] = (answers[out] / spread(answers)).cpu()
                    self.clock.next()
        finally:
            self.clock = Clock()  # other trainings have no deadline
        if not found[:, torch.from_numpy(held[0] >= 0)].isfinite().all():
            raise FloatingPointError(f"{candidate.name} gives logits that are not finite")
        if found.nbytes <= MOST_KEPT:
            put_tensor(self.cache, key, found)
        return found

    def key(
        self, candidate: Candidate, features: Tensor, labels: Tensor, held: NDArray[Any]
    ) -> str:
        """A checksum of all that the logits of held-out images depend on."""
        key = Key(
            "logits of a head",
            3,
            torch=torch.__version__,
            device=self.zero_shot.device.type,
            seed=self.seed,
            classes=self.classes,
            method=candidate.method,
            settings=settings_of(candidate),
        )
        folds = torch.from_numpy(held)
        key.add_tensors({"features": features, "labels": labels, "folds": folds})
        of_clip = {"scale": self.clip.logit_scale, "names": self.fixed[ZERO_SHOT]}
        of_clip |= {f"texts {unit}": texts for unit, texts in self.texts.items()}
        of_clip |= self.projection.head.state_dict() if self.projection else {}
        key.add_tensors(of_clip)
        return str(key)

    def classifier(
        self,
        weights: Sequence[tuple[Candidate, float]],
        features: Tensor,
        labels: Tensor,
        facts: Mapping[str, Any],
    ) -> PromptedClassifier:
        """The chosen classifier, which has learned from all images: a candidate, or an ensemble of
        linear ones.
        """
        ((first, _), *others) = weights
        if first.method in self.fixed and not others:
            sentences = self.zero_shot.description.sentences if first.method == SENTENCES else {}
            return self.exported(first.method, facts, sentences=sentences)
        if not others:
            return self.exported(first.method, facts, self.fit(first, features, labels))
        method = self.ensemble(weights, features, labels)
        return self.exported(ENSEMBLE, facts, method)

    def ensemble(
        self, weights: Sequence[tuple[Candidate, float]], features: Tensor, labels: Tensor
    ) -> FeatureMethod:
        """The weighted sum of linear candidates that have learned from features and labels, which
        is one linear head.
        """
        names = [candidate.name for candidate, _ in weights]
        factors = [float(f"{weight:.6g}") for _, weight in weights]  # for people
        settings = {"MEMBERS": tuple(names), "WEIGHTS": tuple(factors)}
        method = self.method(Candidate(ENSEMBLE, settings), len(labels))
        axes = torch.eye(self.clip.visual.output_dim, device=features.device)  # unit features
        for candidate, weight in weights:
            there, back = (
                self.learned(candidate, (features, labels))(torch.cat([axes, -axes]))
                .detach()
                .chunk(2)
            )
            method.head.weight += weight * (there - back).T / 2
            method.head.bias += weight * (there + back).mean(dim=0) / 2
        return method

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
            state = {
                key: tensor.detach() for key, tensor in method.saved_module().state_dict().items()
            }
            metadata = {"method": name, "class_names": self.names, **values}
            checkpoint = {"state_dict": state, "epoch": 0, "metadata": metadata}
        description = replace(
            self.zero_shot.description, method=name, training=dict(facts), **values
        )
        options = LoadOptions(backbone=description.backbone, device=self.zero_shot.device.type)
        return PromptedClassifier(description, checkpoint, "the fit", options, self.clip)


def spread(logits: Tensor) -> float:
    """The mean over images of the standard deviation of logits (images, classes); 1 if they are
    all equal.
    """
    return float(logits.std(dim=1, correction=0).mean()) or 1.0


def settings_of(candidate: Candidate) -> CfgNode:
    """The configuration of a candidate, which nobody can change."""
    return configuration_of(
        candidate.method,
        *(tuple(part.items()) for part in (candidate.settings, candidate.training)),
    )


@lru_cache(100)  # those of all candidates
def configuration_of(method: str, settings: Pairs, training: Pairs) -> CfgNode:
    kind = trainers.predicting()[method]
    cfg = configuration(method)
    cfg.merge_from_other_cfg({"TRAINER": {kind.section(): {"PREC": "fp32", **dict(settings)}}})
    cfg.merge_from_other_cfg(
        {"OPTIM": {"MAX_EPOCH": 1, "LR_SCHEDULER": "cosine", **dict(training)}}
    )
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = BATCH
    cfg.freeze()
    return cfg
