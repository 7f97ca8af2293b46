"""Exported programs: ONNX, torch.export and the class matrix give the logits of predict."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from learned import images_of
from marks import thorough_but
from PIL import Image
from published import files_below
from safetensors.torch import load_file
from tiny_models import saved

from clip import load_backbone
from common.errors import UsageError
from common.start import ROOT
from inference import export, export_formats
from inference.load import load
from trainers import methods

METHODS = [
    "CoOp",
    "LinearProbe",
    "MMA",
    "MMRL",
    "MPL",
    "MaPLe",
    "PromptSRC",
    "TCP",
    "UPT",
    "VPT",
    "DePT+CoOp",
]
METHODS += ["DePT+MPL", "LoCoOp", "CLIPLoRA", "CLIPFit", "CLIPSVD", "ProLIP", "RLA", "TwoStage"]
SETTINGS = {"LoCoOp": ("TRAINER.LOCOOP.TOPK", 0.2), "MPL": ("TRAINER.MPL.PROMPT_DEPTH", 3)}
SETTINGS |= {
    name: (f"TRAINER.{name.upper()}.N_ITERS", 4) for name in ("CLIPLoRA", "CLIPSVD", "TwoStage")
}
SETTINGS |= {
    name: (
        f"TRAINER.{name.upper()}.STEPS",
        4,
        f"TRAINER.{name.upper()}.AUGMENT_EPOCH",
        2,
        "OPTIM.MAX_EPOCH",
        1,
    )
    for name in ("ProLIP", "RLA")
}
# Tensors of the folded CLIP that are not those of the backbone, by the ends of their names
CHANGED = {
    "CoOp": set(),
    "CLIPLoRA": {"in_proj_weight"},
    "CLIPFit": {"weight", "bias"},
    "CLIPSVD": {"in_proj_weight", "weight"},
    "ProLIP": {"proj"},
    "RLA": {"proj"},
    "FineTune": {
        "class_embedding",
        "weight",
        "bias",
        "in_proj_weight",
        "in_proj_bias",
        "positional_embedding",
        "proj",
    },
    "TwoStage": {"weight", "bias"},
}


@pytest.mark.slow
@pytest.mark.parametrize("method", thorough_but(["MPL"], METHODS))
def test_onnx_agrees_with_predict(method, finished, command, deep, backbones, eurosat, tmp_path):
    # `make test` exports three layers
    deep = backbones(32, 16, 3, 3, 64, 64, 64) if method == "MPL" else deep
    images = list(images_of(eurosat, range(6)))
    precision = f"TRAINER.{methods()[method].section()}.PREC", "fp32"  # on a GPU, too
    classes = "base" if methods()[method].transfers else "all"
    folder = tmp_path / "deeper/exported"
    run = finished(method, classes, *SETTINGS.get(method, ()), *precision, backbone=deep)
    command.works(export, run, "--to", folder, "--onnx")
    classifier = load(folder, backbone=str(deep))
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (logits,) = session.run(None, {"images": classifier.pixels(images).numpy()})
    torch.testing.assert_close(
        torch.from_numpy(logits), classifier.logits(images), rtol=0, atol=1e-3
    )
    assert (
        json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
        == classifier.class_names
    )
    if method == "MPL":
        check_programs(folder, classifier, Path(images[0]))


def check_programs(folder, classifier, image):
    """The programs of docs/predict.md and of the model card, without torch, print what the
    classifier says.
    """
    expected = zip(
        classifier.class_names, classifier.probabilities([image])[0].tolist(), strict=True
    )
    best = dict(sorted(expected, key=lambda pair: -pair[1])[:5])
    for page in (ROOT / "docs/predict.md", folder / "README.md"):
        (code,) = re.findall(
            r"```python\n(import json\n\nimport numpy.*?)```", page.read_text(), re.DOTALL
        )
        code = code.replace("exported/mpl", str(folder)).replace("photo.jpg", str(image))
        program = f"{code}\nimport sys\nassert 'torch' not in sys.modules"
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, cwd=folder
        )
        assert done.returncode == 0, done.stderr
        printed = {
            name: float(value)
            for name, value in (line.split(": ") for line in done.stdout.splitlines())
        }
        assert {name: printed.get(name, 0) for name in best} == pytest.approx(best, abs=5e-3), page


@pytest.mark.slow
@pytest.mark.parametrize("mode", thorough_but(("shortest",), ("shortest", "squash")))
def test_programs_of_a_fit_give_its_probabilities(mode, command, fitting, eurosat, tmp_path):
    backbone = saved("CLIP", tmp_path / "backbone", {"mean": [0.5, 0.4, 0.5], "resize_mode": mode})
    images = shutil.copytree(eurosat / "eurosat/2750", tmp_path / "images")
    for file in sorted((images / "1").iterdir())[:3]:  # wrong labels: the temperature is not 1
        file.rename(images / "0" / f"other_{file.name}")
    fitting.works(images, "--backbone", backbone, "--methods", "GDA")
    out = tmp_path / "out"
    command.works(export, tmp_path / "model", "--to", out, "--onnx", "--backbone", backbone)
    classifier = load(out, backbone=str(backbone), device="cpu")
    assert classifier.description.input["RESIZE_MODE"] == mode
    assert classifier.calibration.temperature.temperature != 1
    mixed = [
        Image.open(next((images / name).iterdir())).convert("RGB").resize((160, 40))
        for name in "35"
    ]
    wide = tmp_path / "wide.png"
    for share in np.linspace(0, 1, 200):  # until no answer is sure
        Image.blend(*mixed, share).save(wide)
        if classifier.probabilities([wide]).max() < 0.9:
            break
    assert classifier.probabilities([wide]).max() < 0.9
    check_programs(out, classifier, wide)


@pytest.mark.slow
@pytest.mark.parametrize("method", thorough_but(["CoOp", "CLIPLoRA"], CHANGED))
def test_class_matrix_and_an_image_tower_give_the_same_logits(
    method, finished, command, deep, eurosat, tmp_path
):
    # A new class, and a learned one
    images = list(images_of(eurosat, range(6)))
    names = ["grey", "red"]
    run = finished(
        method, "base", *SETTINGS.get(method, ()), f"TRAINER.{method.upper()}.PREC", "fp32"
    )
    command.works(export, run, "--to", tmp_path / "out", "--weights", "--classes", *names)
    tensors = load_file(tmp_path / "out/class_matrix.safetensors")
    classifier = load(tmp_path / "out", backbone=str(deep))
    tower = load_backbone(str(deep))
    before = {key: value.clone() for key, value in tower.state_dict().items()}
    if method != "CoOp":
        tower.load_state_dict(load_file(tmp_path / "out/open_clip_model.safetensors"))
    with torch.no_grad():
        features = tower.encode_image(classifier.pixels(images), normalize=True)
    logits = tensors["logit_scale"] * features @ tensors["class_matrix"].T
    torch.testing.assert_close(logits, classifier.logits(images, names), rtol=0, atol=1e-3)
    of_run = load(run).logits(images, names)
    torch.testing.assert_close(of_run, classifier.logits(images, names), rtol=0, atol=1e-5)
    assert tensors["class_matrix"].dtype == torch.float32 and tensors["class_matrix"].shape[0] == 2
    changed = {
        key.split(".")[-1]
        for key, value in tower.state_dict().items()
        if not torch.equal(value, before[key])
    }
    assert changed == CHANGED[method]


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        (
            "CoCoOp",
            ["--onnx"],
            ["the text features of CoCoOp depend on the image", "tools/predict.py"],
        ),
        ("VPT", ["--weights"], ["VPT does not only learn text"]),
        # See below
        (
            "CoOp",
            ["--weights"],
            ["class_matrix.safetensors gives other logits", "over 0.001"],
        ),
        ("CoOp", ["--classes", "a", "b"], ["has class names of its own, which the folder keeps"]),
    ],
)
def test_refused_exports_write_nothing(
    method, options, words, finished, command, tmp_path, monkeypatch
):
    form = export_formats.FORMS["weights"]
    wrong = form._replace(run=lambda *arguments: form.run(*arguments) + 0.002)
    monkeypatch.setitem(export_formats.FORMS, "weights", wrong)
    error = command(export, finished(method), "--to", tmp_path / "out", *options).error
    assert [word for word in words if word not in error] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_model_in_half_precision_has_no_program_and_no_weights(exported, deep, tmp_path):
    """ONNX Runtime has no convolutions of bf16."""
    classifier = load(str(exported), backbone=str(deep))
    classifier.model_for(classifier.class_names).bfloat16()
    for write in (export_formats.write_onnx, export_formats.write_weights):
        with pytest.raises(UsageError, match="computes in bfloat16.*PREC fp32"):
            write(classifier, classifier.class_names, tmp_path / "file")


def test_interrupted_export_can_be_run_again_and_another_one_does_not_overwrite_it(
    finished, command, tmp_path
):
    options = ["--to", tmp_path / "out"]
    command.works(export, finished("CoOp"), *options)
    content = files_below(tmp_path / "out")
    (tmp_path / "out/README.md").unlink()  # an existing folder is filled file by file
    assert "is not empty" in command(export, finished("MaPLe"), *options).error
    (tmp_path / ".out.partial-x").mkdir()  # of a call that was killed when its files were in place
    command.works(export, finished("CoOp"), *options)
    assert files_below(tmp_path / "out") == content
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (
        "is the model itself" in command(export, tmp_path / "out", "--to", tmp_path / "out").error
    )
    assert files_below(tmp_path / "out") == content


def test_other_methods_have_no_adapter(finished, command, tmp_path):
    error = command(export, finished("CoOp"), "--to", tmp_path / "out", "--peft").error
    assert "CoOp does not learn low-rank adapters alone" in error
    assert list(tmp_path.iterdir()) == []


def test_the_removed_adapter_for_open_clip_says_what_to_do_instead(command, tmp_path):
    error = command(export, "model", "--to", tmp_path / "out", "--peft", "open_clip").error
    assert "--peft open_clip was removed: leave open_clip out" in error
