"""Adapters and plug-ins do what prompts do (exported programs and weights, inspect), or are refused in one line."""

import argparse

import pytest
import torch
from learned import images_of
from marks import thorough_but
from safetensors.torch import load_file

from clip import load_backbone
from inference import export
from inference.arguments import add_model_options
from inference.classifier import PromptedClassifier
from inference.inspection import command as inspect
from inference.models import open_models

pytestmark = pytest.mark.slow

NEW = thorough_but(("CLIPLoRA",), ("CLIPLoRA", "MMA", "DePT+CoOp", "LoCoOp", "DePT+CoCoOp", "DePT+MPL"))
QUICK = {"CLIPLoRA": ("TRAINER.CLIPLORA.N_ITERS", 4), "LoCoOp": ("TRAINER.LOCOOP.TOPK", 0.2)}


@pytest.fixture
def run(finished):
    """`run(method)` -> the folder of a finished run on the base classes."""
    return lambda method: finished(method, "base", *QUICK.get(method, ()))


@pytest.mark.thorough
@pytest.mark.parametrize("method", NEW)
def test_programs_are_exported_or_refused_in_one_line(method, run, command, deep, tmp_path):
    done = command(export, run(method), "--to", tmp_path / "out", "--onnx", "--backbone", deep)
    if method == "DePT+CoCoOp":
        assert (done.status, len(done.errors)) == (2, 1) and "depend on the image" in done.errors[0]
    else:
        assert done.status == 0, done.errors


def test_folded_weights_are_a_clip_with_the_same_features(run, command, deep, eurosat, tmp_path):
    assert command(export, run("CLIPLoRA"), "--to", tmp_path / "out", "--weights", "--backbone", deep).status == 0
    classifier = PromptedClassifier.from_folder(tmp_path / "out", str(deep))
    plain = load_backbone(str(deep))
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    state = load_file(tmp_path / "out/open_clip_model.safetensors")
    plain.load_state_dict(state)
    pixels = classifier.pixels(list(images_of(eurosat, range(6))))
    with torch.no_grad():
        expected = classifier.model_for().image_output(pixels.to(classifier.device)).feature.cpu()
        torch.testing.assert_close(plain.encode_image(pixels), expected, rtol=1e-4, atol=1e-5)
    changed = {key.split(".")[-1] for key in state if not torch.equal(state[key], before[key])}
    assert changed == {"in_proj_weight"}


@pytest.mark.parametrize("method", NEW)
def test_models_are_inspected(method, run, command, deep, eurosat, tmp_path):
    images = list(images_of(eurosat, range(2)))
    arguments = ["--images", *images, "--output", tmp_path / "out", "--backbone", deep]
    done = command(inspect, run(method), *arguments)
    assert done.status == 0, done.errors


def test_the_head_of_dept_is_used_for_the_learned_classes_alone(run, deep, eurosat):
    parser = argparse.ArgumentParser()
    add_model_options(parser, device="cpu")
    ((_, classifier),) = open_models([run("DePT+CoOp")], parser.parse_args(["--backbone", str(deep)]))
    own, other = classifier.model_for(), classifier.model_for(["grey", "white snow", "a lake"])
    assert own.classes_learned and not other.classes_learned
    pixels = classifier.pixels(list(images_of(eurosat, range(2))))
    with torch.no_grad():
        output = other.output(pixels)
        torch.testing.assert_close(output.logits, other.logits(output.image, output.text))
        output = own.output(pixels)
        assert not torch.allclose(output.logits, own.logits(output.image, output.text), atol=1e-3)
        some = classifier.model_for(classifier.class_names[1:])  # the head has rows for these
        torch.testing.assert_close(some.output(pixels).logits, output.logits[:, 1:])
