"""A classifier as a file for serving: ONNX, or a class matrix for users of open_clip."""

import json
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from clip import CLIP, load_backbone
from common.errors import UsageError
from common.start import required_packages

from . import peft, peft_export
from .classifier import PromptedClassifier
from .options import LoadOptions

OPSET = 18
TOLERANCE = 1e-3  # largest difference of a logit; more if their standard deviation is over TYPICAL
TYPICAL = 10  # of CLIP's logits; heads of a fit may have any
REQUIREMENTS = "requirements-export.txt"
FOLDED = "open_clip_model.safetensors"  # the whole CLIP, with the weights of adapters folded in


class ImageProgram(nn.Module):
    """Images (batch, 3, H, W) -> logits (batch, classes): the prompted image tower, and the text
    features as constants.

    Args:
        classifier: on the CPU.
        class_names: the classes, in the order of the logits.

    Raises:
        UsageError: the text features depend on the image, or the model computes in bf16.
    """

    text_feature: Tensor

    def __init__(self, classifier: PromptedClassifier, class_names: Sequence[str]):
        super().__init__()
        self.model = classifier.model_for(class_names)
        # To export their tensors
        self.visual = self.model.clip.visual
        self.logit_scale = self.model.clip.logit_scale
        check_type(classifier, self.model.clip)
        self.register_buffer("text_feature", text_feature(classifier, class_names))

    def forward(self, images: Tensor) -> Tensor:
        return self.model.output(images, self.text_feature).logits


def check_type(classifier: PromptedClassifier, clip: CLIP) -> None:
    """Raise UsageError for a model in bf16, whose logits a file for serving would not have."""
    if clip.dtype != torch.float32:
        computes = f"{classifier.method} computes in {str(clip.dtype)[6:]} on this CPU"
        remedy = "train with PREC fp32, or export on a CPU without that type"
        raise UsageError(f"{computes}, and exported programs and weights in float32", remedy)


def text_feature(classifier: PromptedClassifier, class_names: Sequence[str]) -> Tensor:
    """The text features (classes, joint), not normalised; UsageError if they depend on the image,
    as in CoCoOp.

    A linear probe has none, and reads none: an empty tensor.
    """
    model = classifier.model_for(class_names)
    with torch.no_grad():
        features = model.encode_text(torch.zeros(1, model.clip.visual.output_dim))
    if features.dim() == 3:
        fault = (
            f"the text features of {classifier.method} depend on the image, so there is no "
            "class matrix to export"
        )
        raise UsageError(fault, "use tools/predict.py, or `predict` in Python")
    return features


def write_onnx(classifier: PromptedClassifier, class_names: Sequence[str], file: Path) -> None:
    """The image program, for batches of any size."""
    with required_packages(REQUIREMENTS):
        import onnx

        import_module("onnxscript")  # torch.onnx needs it

    with warnings.catch_warnings(), redirect_stdout(StringIO()), torch.no_grad():
        # torch's messages about its own progress and its own future
        warnings.simplefilter("ignore")
        batch = torch.export.Dim("batch", max=1 << 30)  # torch 2.6 needs a maximum
        program = torch.onnx.export(
            ImageProgram(classifier, class_names).eval(),
            (example(classifier, 2),),
            dynamo=True,
            dynamic_shapes={"images": {0: batch}},
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None  # torch returns None if it writes the file itself
    proto = program.model_proto
    onnx.helper.set_model_props(proto, metadata(classifier, class_names))
    onnx.save(proto, file)


def run_onnx(
    classifier: PromptedClassifier, class_names: Sequence[str], file: Path, images: Tensor
) -> Tensor:
    with required_packages(REQUIREMENTS):
        import onnxruntime

    onnxruntime.disable_telemetry_events()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    return torch.from_numpy(logits)


def write_weights(classifier: PromptedClassifier, class_names: Sequence[str], file: Path) -> None:
    """The class matrix, for a plain image tower; and, of a method with adapters, a CLIP with these
    folded in.
    """
    model = classifier.model_for(class_names)
    check_type(classifier, model.clip)
    features = model.of_text(text_feature(classifier, class_names))
    state = model.folded()
    if state is None:
        fault = (
            f"{classifier.method} does not only learn text: its class matrix does not fit the "
            "plain image tower"
        )
        raise UsageError(fault, "use --onnx")
    scale = torch.as_tensor(model.scale).detach()
    file.write_bytes(
        save({"class_matrix": features, "logit_scale": scale}, metadata(classifier, class_names))
    )
    if model.adapted:
        tensors = {key: value.contiguous() for key, value in state.items()}
        file.with_name(FOLDED).write_bytes(save(tensors, metadata(classifier, class_names)))


def run_weights(
    classifier: PromptedClassifier, class_names: Sequence[str], file: Path, images: Tensor
) -> Tensor:
    """As a user of open_clip would: the plain image tower, and one matrix product."""
    tensors = load_file(file)
    clip = load_backbone(classifier.backbone)
    if file.with_name(FOLDED).is_file():
        clip.load_state_dict(load_file(file.with_name(FOLDED)))
    with torch.no_grad():
        features = clip.encode_image(images, normalize=True)
    return tensors["logit_scale"] * features @ tensors["class_matrix"].T


def metadata(classifier: PromptedClassifier, class_names: Sequence[str]) -> dict[str, str]:
    """Facts for the user of the file, as texts; class names, INPUT and calibration are JSON."""
    facts = {
        "class_names": json.dumps(list(class_names)),
        "input": json.dumps(classifier.input),
        "method": classifier.method,
        "backbone": classifier.description.backbone,
    }
    if classifier.calibration and list(class_names) == classifier.class_names:
        facts["calibration"] = json.dumps(classifier.calibration.to_json())
    return facts


def run_peft(
    classifier: PromptedClassifier, class_names: Sequence[str], file: Path, images: Tensor
) -> Tensor:
    """As the adapter is read again, with its configuration beside it."""
    backbone = classifier.backbone
    device = classifier.device.type
    options = LoadOptions(backbone=backbone, class_names=class_names, device=device)
    description, checkpoint, backbone = peft.read_adapter(file.parent, options)
    again = PromptedClassifier(description, checkpoint, str(file), options, classifier.clip)
    return again.logits(images)


class Form(NamedTuple):
    """A form of export: its file, how to write it, and how to run it on images (batch, 3, H, W)."""

    file: str
    write: Callable[[PromptedClassifier, Sequence[str], Path], None]
    run: Callable[[PromptedClassifier, Sequence[str], Path, Tensor], Tensor]
    about: str


FORMS = {
    "onnx": Form("model.onnx", write_onnx, run_onnx, f"ONNX, opset {OPSET}: images -> logits"),
    "weights": Form(
        "class_matrix.safetensors", write_weights, run_weights, "a class matrix for open_clip"
    ),
    "peft": Form(
        peft.TENSORS,
        peft_export.write,
        run_peft,
        "an adapter of PEFT for the CLIP of transformers",
    ),
}
FILES = [*(form.file for form in FORMS.values()), FOLDED, peft.CONFIG]


def write(
    form: Form, classifier: PromptedClassifier, class_names: Sequence[str], folder: Path
) -> dict[str, str]:
    """Write a form, and compare it with the classifier.

    Returns:
        the written files with a text, for the model card.
    """
    form.write(classifier, class_names, folder / form.file)
    largest = largest_difference(form, classifier, class_names, folder / form.file)
    print(f"{form.file}: largest difference of a logit on images of noise: {largest:.1e}")
    written = {form.file: f"{form.about}; logits within {largest:.1e} of the model's"}
    if (folder / FOLDED).is_file():
        text = "the CLIP with the learned changes folded in; open_clip loads it as pretrained"
        written[FOLDED] = text
    if form.file == peft.TENSORS:
        written[peft.CONFIG] = "the configuration of the adapter"
    return written


def largest_difference(
    form: Form, classifier: PromptedClassifier, class_names: Sequence[str], file: Path
) -> float:
    """The largest difference of a logit of the exported file, over images of noise; UsageError if
    over TOLERANCE.
    """
    images = example(classifier, 16)
    expected = classifier.logits(images, class_names)
    # Batches of any size
    found = [form.run(classifier, class_names, file, part) for part in (images, images[:1])]
    # NaN if a logit is
    largest = (torch.cat(found) - torch.cat([expected, expected[:1]])).abs().max().item()
    most = TOLERANCE * max(1.0, expected.std().item() / TYPICAL)
    if not largest <= most:
        fault = (
            f"{form.file} gives other logits than the classifier: they differ by {largest:.2g}, "
            f"over {most:.2g}"
        )
        raise UsageError(fault, "report this with the version of torch and the method")
    return largest


def example(classifier: PromptedClassifier, batch: int) -> Tensor:
    """Noise of the shape of normalised images, always the same: (batch, 3, H, W)."""
    return torch.randn(
        batch, 3, *classifier.cfg.INPUT.SIZE, generator=torch.Generator().manual_seed(0)
    )
