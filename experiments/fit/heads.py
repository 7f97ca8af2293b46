"""The candidates: zero-shot CLIP, and every head of this project over a small grid of its settings."""

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from dassl.engine.base import TrainerBase
from numpy.typing import NDArray
from torch import Tensor

import trainers
from inference.classifier import PromptedClassifier, configuration
from trainers.base.feature_trainer import FeatureTrainer, FittedTrainer, Support
from trainers.base.features import CachedOutput
from trainers.base.method import Classes
from trainers.base.prompted import normalize

ZERO_SHOT = "ZeroshotCLIP"
LINEAR = (ZERO_SHOT, "CLAP", "ZSLP", "SSText", "TaskRes", "GDA", "LPPlusPlus")  # in features of unit length
BATCH = 256  # features of a step


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
        values = {**self.settings, **{key: value for key, value in self.training.items() if key == "LR"}}
        return " ".join([self.method, *(f"{key} {value}" for key, value in values.items() if key in SHOWN)])


SHOWN = ("ALPHA", "BETA", "LAMBDA", "RULE", "C", "STEP", "LR", "RATIO", "RESIDUAL_SCALE")
SGD = {"NAME": "sgd", "WEIGHT_DECAY": 0.0, "MAX_EPOCH": 40}
ADAM = {"NAME": "adam", "WEIGHT_DECAY": 0.0, "MAX_EPOCH": 40}
ONE = {"AUGMENT_EPOCH": 1}
TIP_F = ADAM | {"NAME": "adamw", "LR": 0.001, "ADAM_EPS": 1e-4}
CANDIDATES = (  # the first one of a method has its defaults
    Candidate(ZERO_SHOT),
    *(Candidate("CLAP", ONE, SGD | {"LR": lr}) for lr in (0.1, 0.3, 1.0)),
    *(Candidate("ZSLP", ONE, SGD | {"LR": lr}) for lr in (0.3, 1.0)),
    *(Candidate("SSText", {"RULE": rule}) for rule in ("SStext", "by_performance")),
    *(Candidate("TaskRes", {"RESIDUAL_SCALE": scale, **ONE}, ADAM | {"LR": 0.002}) for scale in (8.0, 20.0)),
    *(Candidate("GDA", {"ALPHA": alpha, **ONE}) for alpha in (1.0, 10.0, 100.0)),
    *(Candidate("TipAdapter", {"ALPHA": alpha, "BETA": 5.5, **ONE}) for alpha in (1.0, 10.0, 100.0)),
    Candidate("ProKeR", {"BETA": 2.0, "LAMBDA": 0.1, **ONE}),
    *(Candidate("LPPlusPlus", {"STEP": step}) for step in (100, 30)),
    *(Candidate("LinearProbe", {"C": c}) for c in (1.0, 0.1)),
    *(Candidate("CLIPAdapter", ONE, ADAM | {"LR": lr}) for lr in (0.003, 0.01)),
    *(
        Candidate("TipAdapterF", {"ALPHA": alpha, "INIT_ALPHA": alpha, "BETA": 1.0, **ONE}, TIP_F)
        for alpha in (10.0, 50.0)
    ),
)


class Heads:
    """Heads on the features of one CLIP.

    Args:
        zero_shot: zero-shot CLIP for the classes, whose towers are not run here.
        texts: (classes, joint), its text features, not normalised.
    """

    def __init__(self, zero_shot: PromptedClassifier, texts: Tensor, seed: int = 0):
        self.zero_shot = zero_shot
        self.clip: Any = zero_shot.clip
        self.texts = texts
        self.seed = seed
        self.names = zero_shot.class_names

    def method(self, candidate: Candidate, rows: int) -> Any:
        """The method of a candidate with a head that has seen nothing, for so many training images."""
        kind: Any = trainers.methods()[candidate.method]
        cfg = configuration(candidate.method)
        cfg.merge_from_other_cfg({"TRAINER": {kind.section(): {"PREC": "fp32", **candidate.settings}}})
        cfg.merge_from_other_cfg({"OPTIM": {"MAX_EPOCH": 1, "LR_SCHEDULER": "cosine", **candidate.training}})
        cfg.DATALOADER.TRAIN_X.BATCH_SIZE = BATCH
        method = kind(cfg, Classes(self.names, self.zero_shot.description.template), self.texts.device)
        method.dm = SimpleNamespace(dataset=SimpleNamespace(train_x=range(rows)))
        method.model = method.Model(self.clip, method.build_prompts(self.clip, self.names), "fast")
        if method.spec.reads_text:
            method.set_texts(self.texts)
        return method

    def fit(self, candidate: Candidate, features: Tensor, labels: Tensor) -> Any:
        """The method with a head that has learned from features (images, joint) and labels (images,).

        Raises:
            FloatingPointError: a loss is not finite.
        """
        torch.manual_seed(self.seed)
        method = self.method(candidate, len(labels))
        with redirect_stdout(io.StringIO()):
            TrainerBase.__init__(method)
            method.scaler = torch.amp.GradScaler(enabled=False)
            method.register()
            method.begin(Support(features[None], labels))
            method.run_epoch() if isinstance(method, FittedTrainer) else train(method)
        method.model.eval()
        return method

    def answers(self, candidate: Candidate, seen: tuple[Tensor, Tensor], features: Tensor) -> Tensor:
        """Logits (images, classes) for features (images, joint), after learning from the features and labels `seen`."""
        if candidate.method == ZERO_SHOT:
            return self.clip.logit_scale.exp() * normalize(features) @ normalize(self.texts).T
        return self.fit(candidate, *seen).model_inference(CachedOutput(features))

    @torch.no_grad()
    def held_out(self, candidate: Candidate, features: Tensor, labels: Tensor, held: NDArray[Any]) -> Tensor:
        """(repeats, images, classes): the logits of images whose folds `held` were left out (`choice.folds`).

        Raises:
            FloatingPointError: a loss or a logit is not finite.
        """
        found = torch.full((*held.shape, len(self.names)), torch.nan)
        for row, logits in zip(torch.from_numpy(held), found, strict=True):
            for fold in range(int(row.max()) + 1):
                out = row == fold
                with torch.enable_grad():
                    answers = self.answers(candidate, (features[~out], labels[~out]), features[out])
                if not answers.isfinite().all():
                    raise FloatingPointError(f"{candidate.name} gives logits that are not finite")
                logits[out] = answers.detach()
        return found

    def classifier(
        self, weights: Sequence[tuple[Candidate, float]], features: Tensor, labels: Tensor, facts: Mapping[str, Any]
    ) -> PromptedClassifier:
        """The chosen classifier, which has learned from all images: a candidate, or an ensemble of linear ones.

        The sum of linear heads is one linear head. It has the form of LP++'s, without its texts.
        """
        ((first, _), *others) = weights
        zero_shot = self.zero_shot.description
        if first.method == ZERO_SHOT and not others:
            description = replace(zero_shot, training=dict(facts))
            return PromptedClassifier(description, None, zero_shot.backbone, zero_shot.backbone, clip=self.clip)
        if others:
            method = self.method(Candidate("LPPlusPlus", {"STEP": 1}), len(labels))
            method.head.requires_grad_(False)
            for candidate, weight in weights:
                matrix, bias = self.linear(candidate, features, labels)
                method.head.classifier.weight += weight * matrix.T
                method.head.classifier.bias += weight * bias
            method.head.alpha_vec.zero_()
        else:
            method = self.fit(first, features, labels)
        settings = asdict(method.settings)
        description = replace(zero_shot, method=type(method).__name__, settings=settings, training=dict(facts))
        metadata = {"method": description.method, "settings": settings, "class_names": self.names}
        state = {name: tensor.detach() for name, tensor in method.saved_module().state_dict().items()}
        checkpoint = {"state_dict": state, "epoch": 0, "metadata": metadata}
        return PromptedClassifier(description, checkpoint, "the fit", zero_shot.backbone, clip=self.clip)

    def linear(self, candidate: Candidate, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """A linear head after learning, as a matrix (joint, classes) and a bias (classes,) for unit features."""
        axes = torch.eye(features.shape[1])
        both = self.answers(candidate, (features, labels), torch.cat([axes, -axes])).detach()
        there, back = both.chunk(2)
        return (there - back) / 2, (there + back).mean(dim=0) / 2


def train(method: FeatureTrainer) -> None:
    """The epochs of a head that learns by gradients; nothing is printed or saved."""
    method.model.train()
    method.num_batches = len(method.train_loader_x)
    for _ in range(method.cfg.OPTIM.MAX_EPOCH):
        for number, batch in enumerate(method.train_loader_x):
            method.batch_idx = number
            method.forward_backward(batch)
    method.finish()
