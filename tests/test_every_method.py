"""Adapters and plug-ins do what prompts do (predict, export, inspect, other classes), or are refused in one line."""

import argparse

import pytest
import torch
from learned import images_of
from marks import thorough_but
from safetensors.torch import load_file

from clip import load_backbone
from inference import export, predict
from inference.arguments import add_model_options
from inference.classifier import PromptedClassifier
from inference.inspection import command as inspect
from inference.models import open_models

pytestmark = pytest.mark.slow

NEW = thorough_but(("CLIPLoRA",), ("CLIPLoRA", "MMA", "DePT+CoOp", "LoCoOp", "DePT+CoCoOp", "DePT+MPL"))
QUICK = {"CLIPLoRA": ("TRAINER.CLIPLORA.N_ITERS", 4), "LoCoOp": ("TRAINER.LOCOOP.TOPK", 0.2)}
WORDS = {  # refused exports, and the line of each
    ("MMA", "--weights"): "MMA does not only learn text",
    ("DePT+CoOp", "--weights"): "DePT+CoOp does not only learn text",
    ("DePT+MPL", "--weights"): "DePT+MPL does not only learn text",
    ("DePT+CoCoOp", "--onnx"): "depend on the image",
    ("DePT+CoCoOp", "--weights"): "depend on the image",
}


@pytest.fixture
def run(finished):
    """`run(method)` -> the folder of a finished run on the base classes; `tests`: of a test of its prompts."""
    return lambda method, classes="base", tests=None: finished(method, classes, *QUICK.get(method, ()), tests=tests)


@pytest.mark.parametrize("method", NEW)
def test_new_classes_are_tested_and_predicted_alike(method, run, command, deep, eurosat, tmp_path):
    trained = run(method)
    assert (run(method, "new", trained) / "results.json").is_file()
    images = list(images_of(eurosat, range(6)))
    names = ["grey", "white snow"]
    arguments = [trained, *images, "--backbone", deep, "--classes", *names]
    done = command(predict, *arguments)
    assert done.status == 0 and "white snow" in done.printed, done.errors
    done = command(export, trained, "--to", tmp_path / "out", "--backbone", deep)
    assert done.status == 0, done.errors
    exported = PromptedClassifier.from_folder(tmp_path / "out", str(deep))
    assert exported.logits(images).shape == (len(images), 3)
    assert exported.logits(images, names).isfinite().all()


@pytest.mark.parametrize("form", thorough_but(("--weights",), ("--onnx", "--weights")))
@pytest.mark.parametrize("method", NEW)
def test_programs_are_exported_or_refused_in_one_line(method, form, run, command, deep, tmp_path):
    done = command(export, run(method), "--to", tmp_path / "out", form, "--backbone", deep)
    if (method, form) in WORDS:
        assert (done.status, len(done.errors)) == (2, 1) and WORDS[method, form] in done.errors[0]
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
