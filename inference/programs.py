"""A classifier as a file for serving: ONNX, a torch.export program, or a class matrix for users of open_clip."""

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from functools import lru_cache
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from clip import load_backbone
from common.errors import UsageError
from common.start import required_packages
from trainers.base.prompted import PromptedCLIP, PromptLearner

from .classifier import PromptedClassifier

OPSET = 18
TOLERANCE = 1e-3  # largest difference of a logit
Names = tuple[str, ...] | None  # class names instead of the classifier's own
REQUIREMENTS = "requirements-export.txt"


class FixedVision(PromptLearner):
    """The vision prompts of another prompt learner as they are now, without what they are computed from."""

    def __init__(self, learner: PromptLearner):
        super().__init__()
        self.read, self.logit_scale, self.image_of = learner.read, learner.logit_scale, learner.image
        self.extra = nn.ModuleDict(learner.extra_modules)  # which `image_of` may use
        added = [None if edit.add is None else edit.add.detach() for edit in learner.vision()]
        self.schedule = [replace(edit, add=add) for edit, add in zip(learner.vision(), added, strict=True)]

    def vision(self):
        return self.schedule

    def image(self, tower, learned):
        return self.image_of(tower, learned)


class ImageProgram(nn.Module):
    """Images (batch, 3, H, W) -> logits (batch, classes): the prompted image tower, and the text features as constants.

    Args:
        classifier: on the CPU.
        class_names: the classes, in the order of the logits.

    Raises:
        UsageError: the text features depend on the image.
    """

    class_features: Tensor

    def __init__(self, classifier: PromptedClassifier, class_names: Names):
        super().__init__()
        model = classifier.model_for(class_names)
        features = class_features(classifier, class_names)
        self.register_buffer("class_features", features)
        self.visual, self.logit_scale = model.clip.visual, model.clip.logit_scale  # so that their tensors are exported
        learner = model.prompt_learner
        self.model = type(model)(model.clip, FixedVision(learner) if learner.vision() else learner)
        self.model.classes_learned = model.classes_learned

    def forward(self, images: Tensor) -> Tensor:
        return self.model.logits(self.model.image_features(images), self.class_features)


def class_features(classifier: PromptedClassifier, class_names: Names) -> Tensor:
    """The normalised text features (classes, joint), fp32.

    Raises:
        UsageError: they depend on the image, as in CoCoOp.
    """
    model = classifier.model_for(class_names)
    with torch.no_grad():
        features = model.text_features(torch.zeros(1, model.clip.visual.output_dim))
    if features.dim() != 2:
        raise UsageError(
            f"the text features of {classifier.method} depend on the image, so there is no class matrix to export",
            "use tools/predict.py, or PromptedClassifier in Python",
        )
    return features


@lru_cache(maxsize=1)  # ONNX and torch.export both begin with it
def exported(classifier: PromptedClassifier, class_names: Names) -> torch.export.ExportedProgram:
    """The graph of the image program, for batches of any size."""
    program, shapes = ImageProgram(classifier, class_names).eval(), {"images": {0: torch.export.Dim("batch")}}
    with quiet(), torch.no_grad():
        return torch.export.export(program, (example(classifier),), dynamic_shapes=shapes, strict=False)


def write_onnx(classifier: PromptedClassifier, class_names: Names, file: Path) -> None:
    with required_packages(REQUIREMENTS):
        import onnx
        import onnxscript  # noqa: F401 - torch.onnx needs it

    with quiet():
        program = torch.onnx.export(
            exported(classifier, class_names),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None  # it is None only where torch writes the file itself
    proto = program.model_proto
    onnx.helper.set_model_props(proto, metadata(classifier, class_names))
    onnx.save(proto, file)


def run_onnx(classifier: PromptedClassifier, file: Path, images: Tensor) -> Tensor:
    with required_packages(REQUIREMENTS):
        import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    return torch.from_numpy(logits)


def write_torch(classifier: PromptedClassifier, class_names: Names, file: Path) -> None:
    torch.export.save(exported(classifier, class_names), file, extra_files=metadata(classifier, class_names))


def run_torch(classifier: PromptedClassifier, file: Path, images: Tensor) -> Tensor:
    with quiet(), torch.no_grad():
        return torch.export.load(file).module()(images)


def write_weights(classifier: PromptedClassifier, class_names: Names, file: Path) -> None:
    """The class matrix, for the image tower without prompts."""
    features = class_features(classifier, class_names)
    model = classifier.model_for(class_names)
    if type(model) is not PromptedCLIP or model.prompt_learner.vision():
        raise UsageError(
            f"{classifier.method} does not only learn text: its class matrix does not fit the plain image tower",
            "use --onnx or --torch",
        )
    scale = model.clip.logit_scale.exp().detach().float()
    file.write_bytes(save({"class_matrix": features, "logit_scale": scale}, metadata(classifier, class_names)))


def run_weights(classifier: PromptedClassifier, file: Path, images: Tensor) -> Tensor:
    """As a user of open_clip would: the published image tower, and one matrix product."""
    tensors = load_file(file)
    with torch.no_grad():
        features = load_backbone(classifier.cfg.MODEL.BACKBONE.NAME).encode_image(images, normalize=True)
    return tensors["logit_scale"] * features @ tensors["class_matrix"].T


def metadata(classifier: PromptedClassifier, class_names: Names) -> dict[str, str]:
    """Facts for the user of the file, as texts; the class names and INPUT are JSON."""
    names = list(class_names or classifier.class_names)
    return {
        "class_names": json.dumps(names),
        "input": json.dumps(classifier.description.input),
        "method": classifier.method,
        "backbone": classifier.description.backbone,
    }


class Form(NamedTuple):
    """A form of export: its file, how to write it, and how to run it on images (batch, 3, H, W)."""

    file: str
    write: Callable[[PromptedClassifier, Names, Path], None]
    run: Callable[[PromptedClassifier, Path, Tensor], Tensor]
    about: str


FORMS = {
    "onnx": Form("model.onnx", write_onnx, run_onnx, f"ONNX, opset {OPSET}: images -> logits"),
    "torch": Form("model.pt2", write_torch, run_torch, "a torch.export program: images -> logits"),
    "weights": Form("class_matrix.safetensors", write_weights, run_weights, "a class matrix for open_clip"),
}


def largest_difference(
    form: Form, classifier: PromptedClassifier, class_names: Names, folder: Path, images: Tensor
) -> float:
    """The largest difference between a logit of the exported file and of the classifier, over the images one by one
    and together.

    Raises:
        UsageError: it is over TOLERANCE.
    """
    expected = classifier.logits(images, class_names)
    parts = (slice(None), slice(0, 1))
    differences = [(form.run(classifier, folder / form.file, images[part]) - expected[part]).abs() for part in parts]
    largest = torch.cat(differences).max().item()  # NaN if a logit is
    if not largest <= TOLERANCE:
        raise UsageError(
            f"{form.file} gives other logits than the classifier: they differ by {largest:.2g}, over {TOLERANCE}",
            "report this with the version of torch and the method",
        )
    return largest


@contextmanager
def quiet() -> Iterator[None]:
    """Without torch's messages about its own progress and its own future."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        yield


def example(classifier: PromptedClassifier, batch: int = 2) -> Tensor:
    """Noise of the shape of normalised images, always the same: (batch, 3, H, W)."""
    return torch.randn(batch, 3, *classifier.cfg.INPUT.SIZE, generator=torch.Generator().manual_seed(0))
