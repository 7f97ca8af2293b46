"""Predicting and exporting: runs, artefacts and published checkpoints give the numbers of a run's test."""

import csv
import io
import json
import os
import re
import shutil
from argparse import Namespace
from contextlib import redirect_stdout
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
import yaml
from dassl.config import get_cfg_default
from dassl.engine import build_trainer
from drawn import METHODS
from PIL import Image
from safetensors.torch import load_file, save_file

import trainers
from clip import load_backbone, tokenize
from common.files import checksum
from common.start import ROOT
from experiments.configs import default_config
from experiments.configuration import extend_cfg
from experiments.inference import export, predict, programs
from experiments.inference.models import open_models
from experiments.run import main as train
from experiments.session import cli_main
from trainers.classifier import PromptedClassifier

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["red", "green field", "blue_lake", "grey", "white snow", "black"]  # of the drawn EuroSAT
OPTIONS = Namespace(backbone="", config_file="", trainer="", load_epoch=None, device="", template="")
SHORT = ["DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 1, "DATALOADER.NUM_WORKERS", 0, "INPUT.SIZE", "(32, 32)"]


@pytest.fixture(scope="module")
def run(eurosat, deep, tmp_path_factory):
    """`run("MPL", "base", *overrides, **options)` -> the output folder of a finished run, made once."""
    root, done = tmp_path_factory.mktemp("runs"), {}

    def run(method, classes="base", *overrides, model_dir=None):
        key = str((method, classes, overrides, model_dir))
        if key not in done:
            folder = trainers.methods()[method].config_folder
            config = ROOT / "configs/trainers" / folder / f"{default_config(folder, 'base2new')}.yaml"
            argv = ["--root", eurosat, "--backbone", deep, "--trainer", method, "--config-file", config, "--seed", 1]
            argv += [
                "--dataset-config-file",
                ROOT / "configs/datasets/eurosat.yaml",
                "--output-dir",
                root / str(len(done)),
            ]
            argv += ["--eval-only", "--model-dir", model_dir] if model_dir else []
            with redirect_stdout(io.StringIO()):
                train([str(item) for item in (*argv, *SHORT, "DATASET.SUBSAMPLE_CLASSES", classes, *overrides)])
            done[key] = root / str(len(done))
        return done[key]

    return run


@pytest.fixture
def tool(ended):
    """`tool(predict, *arguments)` runs a command in this process and returns an `Ended`."""
    return lambda module, *arguments: ended(lambda: cli_main(lambda: module.main([str(item) for item in arguments])))


def rows_of(tool, *arguments) -> list[dict]:
    done = tool(predict, *arguments, "--json")
    assert (done.status, done.errors) == (0, [])
    return json.loads(done.printed)


def drawn(eurosat: Path, labels: range) -> dict[str, str]:
    """Path -> class name of the test images of these labels."""
    split = json.loads((eurosat / "eurosat/split_zhou_EuroSAT.json").read_text())["test"]
    return {f"{eurosat}/eurosat/2750/{path}": name for path, label, name in split if label in labels}


# The same numbers as a run's test


def own_test(folder: Path, classes: str) -> tuple[list[str], torch.Tensor, list[str]]:
    """The test images of a run's dataset, their logits as its trainer computes them, and the class names."""
    cfg = get_cfg_default()
    name = yaml.safe_load((folder / "config.yaml").read_text())["TRAINER"]["NAME"]
    extend_cfg(cfg, name)
    cfg.merge_from_file(str(folder / "config.yaml"))
    cfg.merge_from_list(["DATASET.SUBSAMPLE_CLASSES", classes])
    trainer = build_trainer(cfg)
    trainer.load_model(str(folder))
    trainer.set_model_mode("eval")
    batches = list(trainer.test_loader)
    logits = torch.cat([trainer.model_inference(batch["img"]) for batch in batches])
    return [path for batch in batches for path in batch["impath"]], logits, trainer.dm.dataset.classnames


@pytest.mark.parametrize("method", METHODS)
def test_logits_are_those_of_the_runs_test(method, run, tool):
    folder = run(method)
    files, expected, names = own_test(folder, "base")
    new_files, new_expected, new_names = own_test(folder, "new")
    (model,) = open_models([folder], OPTIONS)
    assert model.classifier.class_names == [name.replace("_", " ") for name in names]
    torch.testing.assert_close(model.classifier.logits(files), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.classifier.logits(new_files, new_names), new_expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.classifier.logits(files), expected, rtol=0, atol=1e-5)  # and back


def test_accuracy_is_that_of_results_json(run, tool, eurosat):
    folder, names = run("MPL", "base"), drawn(eurosat, range(3))
    rows = rows_of(tool, folder, *names, "--topk", 1)
    correct = [row["top"][0]["class"] == names[row["image"]].replace("_", " ") for row in rows]
    results = json.loads((folder / "results.json").read_text())
    assert (len(rows), 100 * sum(correct) / len(rows)) == (results["n_test"], results["accuracy"])


def test_other_class_names_give_the_accuracy_of_the_runs_test_on_new_classes(run, tool, eurosat):
    names = drawn(eurosat, range(3, 6))
    results = json.loads((run("MaPLe", "new", model_dir=run("MaPLe")) / "results.json").read_text())
    rows = rows_of(tool, run("MaPLe"), *names, "--topk", 1, "--classes", *NAMES[3:])
    correct = [row["top"][0]["class"] == names[row["image"]] for row in rows]
    assert (len(rows), 100 * sum(correct) / len(rows)) == (results["n_test"], results["accuracy"])


# Artefacts


@pytest.fixture(scope="module")
def artefact(run, tmp_path_factory):
    """A folder that tools/export.py wrote, of CoOp's prompts."""
    folder = tmp_path_factory.mktemp("artefacts") / "coop"
    with redirect_stdout(io.StringIO()):
        export.main([str(run("CoOp")), "--to", str(folder)])
    return folder


@pytest.fixture
def copied(artefact, tmp_path):
    return Path(shutil.copytree(artefact, tmp_path / "moved"))


def changed(folder: Path, **values) -> Path:
    """The artefact with these values in its config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return folder


def test_artefact_holds_the_learned_tensors_and_a_description(run, artefact, deep):
    content = json.loads((artefact / "config.json").read_text())
    tensors = load_file(artefact / "prompts.safetensors")
    checkpoint = torch.load(run("CoOp") / "prompt_learner/model.pth.tar-1", weights_only=True)
    assert tensors.keys() == {"ctx"} and torch.equal(tensors["ctx"], checkpoint["state_dict"]["ctx"])
    results = json.loads((run("CoOp") / "results.json").read_text())
    assert content["backbone"] == deep.name and content["backbone_sha256"] == checksum(deep)
    assert content["class_names"] == ["red", "green field", "blue lake"]
    assert content["training"]["accuracy"] == results["accuracy"] and content["training"]["seed"] == 1
    assert content["input"]["SIZE"] == [32, 32] and content["input"]["TRANSFORMS"] == ["normalize"]
    card = (artefact / "README.md").read_text()
    assert f"{results['accuracy']:.2f} % on 12 images" in card and content["backbone_sha256"] in card
    assert str(deep.parent) not in card + json.dumps(content)  # no path of this machine


def test_moved_artefact_predicts_the_same_without_a_dataset(run, copied, tool, deep, eurosat, monkeypatch):
    images = list(drawn(eurosat, range(6)))
    expected = rows_of(tool, run("CoOp"), *images)
    monkeypatch.chdir(copied.parent)
    rows = rows_of(tool, "moved", *images, "--backbone", deep)
    assert [row | {"model": "CoOp"} for row in rows] == expected
    classifier = PromptedClassifier.from_folder(copied, backbone=str(deep))
    tops = classifier.probabilities(images).max(dim=-1)
    assert [classifier.class_names[index] for index in tops.indices] == [row["top"][0]["class"] for row in rows]
    assert tops.values.tolist() == pytest.approx([row["top"][0]["probability"] for row in rows])


def test_python_call_takes_files_pil_images_and_tensors(copied, deep, eurosat):
    classifier = PromptedClassifier.from_folder(copied, str(deep))
    file = next(iter(drawn(eurosat, range(1))))
    image = Image.open(file).convert("RGB")
    forms = [file, Path(file), [file], image, [image], classifier.transform(image)[None]]
    first, *others = [classifier.probabilities(form) for form in forms]
    assert first.shape == (1, 3) and first.sum().item() == pytest.approx(1)
    assert all(torch.equal(first, other) for other in others)


def test_exported_artefact_can_be_exported_again(copied, tool, deep, tmp_path):
    done = tool(export, copied, "--to", tmp_path / "again", "--backbone", deep)
    assert done.status == 0, done.errors
    for name in ("config.json", "prompts.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (copied / name).read_bytes()


def replace_prompts(folder: Path) -> None:
    tensors = load_file(folder / "prompts.safetensors")
    save_file({key: tensor + 1 for key, tensor in tensors.items()}, folder / "prompts.safetensors")


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


BROKEN = {
    "tampered prompts": (replace_prompts, "is not the file that config.json describes (its SHA-256 differs)"),
    "damaged prompts": (lambda folder: (folder / "prompts.safetensors").write_bytes(b"\xff" * 99), "is damaged"),
    "no prompts": (lambda folder: (folder / "prompts.safetensors").unlink(), "there is no "),
    "a pipe as prompts": (lambda folder: pipe(folder / "prompts.safetensors"), "is not a regular file"),
    "a pipe as config": (lambda folder: pipe(folder / "config.json"), "is not a regular file"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "is not JSON"),
    "a list": (lambda folder: (folder / "config.json").write_text("[1]"), "its format is not 1"),
    "deep nesting": (lambda folder: (folder / "config.json").write_text("[" * 10**6), "is not JSON"),
    "a large config": (lambda folder: (folder / "config.json").write_text(" " * (9 << 20)), "is larger than 8,388,608"),
    "a later format": (lambda folder: changed(folder, format=2), "its format is not 1"),
    "no class names": (lambda folder: changed(folder, class_names=[]), "no class names: give them by --classes"),
    "an escape in a name": (lambda folder: changed(folder, class_names=["\x1b[2J"] * 3), "not all printable"),
    "other names": (lambda folder: changed(folder, class_names="red"), "class_names is not of the type list"),
    "an unknown method": (lambda folder: changed(folder, method="CoUp"), "no method 'CoUp': did you mean CoOp?"),
    "another method": (
        lambda folder: changed(folder, method="CoCoOp", settings={"N_CTX": 4}),
        "has no meta_net.linear1.weight",
    ),
    "an unknown setting": (lambda folder: changed(folder, settings={"N": 1}), "TRAINER.COOP.N"),
    "a setting of another type": (lambda folder: changed(folder, settings={"N_CTX": "many"}), "N_CTX"),
    "a huge setting": (lambda folder: changed(folder, settings={"N_CTX": 10**9}), "N_CTX is 1000000000"),
    "a nested setting": (lambda folder: changed(folder, settings={"N_CTX": [[1]]}), "other values than texts"),
    "other settings": (lambda folder: changed(folder, settings={"N_CTX": 2}), "expected is (2, 64)"),
    "a size of zero": (lambda folder: changed(folder, input={"SIZE": [0, 0]}), "INPUT.SIZE"),
    "another size": (lambda folder: changed(folder, input={"SIZE": [64, 64]}), "reads (32, 32)"),
    "a deviation of zero": (
        lambda folder: changed(folder, input={"SIZE": [32, 32], "PIXEL_STD": [0, 0, 0]}),
        "PIXEL_STD",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_artefact_is_refused_in_one_line(name, copied, tool, deep, eurosat):
    break_it, reason = BROKEN[name]
    break_it(copied)
    done = tool(predict, copied, eurosat, "--backbone", deep, "--json")
    assert (done.status, done.printed, len(done.errors)) == (2, "", 1), done.errors
    assert done.errors[0].startswith("error: ") and reason in done.errors[0]


def test_other_weights_are_refused_by_their_sha256(copied, tool, backbones, eurosat):
    other = backbones(32, 16, 12, 12, 64, 64, 64)
    done = tool(predict, copied, eurosat, "--backbone", other)
    assert (done.status, len(done.errors)) == (2, 1)
    assert f"{other} has {checksum(other)[:16]}...: give the same weights by --backbone" in done.errors[0]


def test_weight_file_of_another_machine_must_be_given(copied, tool, eurosat, deep):
    changed(copied, backbone="/etc/passwd")  # no path in an artefact is followed
    done = tool(predict, copied, eurosat)
    assert (done.status, len(done.errors)) == (2, 1)
    assert "learned on the weight file '/etc/passwd': give it by --backbone" in done.errors[0]


# Predicting: forms of output and bad input


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder with five images, in a folder below too, and with other files."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "below").mkdir()
    (folder / ".hidden").mkdir()
    for number, name in enumerate(["b.png", "a.jpg", "below/c.PNG", "d.webp", "e f.bmp", ".g.png", ".hidden/h.png"]):
        Image.new("RGB", (40 + number, 50), (40 * number, 100, 0)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def test_table_csv_and_json_have_the_same_figures(run, tool, photos):
    rows = rows_of(tool, run("CoOp"), photos, "--topk", 2)
    files = [str(photos / name) for name in ("a.jpg", "b.png", "below/c.PNG", "d.webp", "e f.bmp")]
    assert [row["image"] for row in rows] == files
    assert all(len(row["top"]) == 2 and row["model"] == "CoOp" for row in rows)
    assert all(row["top"][0]["probability"] >= row["top"][1]["probability"] for row in rows)
    lines = list(csv.reader(io.StringIO(tool(predict, run("CoOp"), photos, "--topk", 2, "--csv").printed)))
    assert lines[0] == ["image", "model", "rank", "class", "probability"]
    flat = [
        [row["image"], row["model"], str(rank), top["class"], str(top["probability"])]
        for row in rows
        for rank, top in enumerate(row["top"], start=1)
    ]
    assert lines[1:] == flat
    printed = tool(predict, run("CoOp"), photos, "--topk", 2).printed.splitlines()
    for row, line in zip(rows, printed, strict=True):
        (first, second), image = row["top"], row["image"]
        expected = f"{first['class']:<11} {100 * first['probability']:5.1f} %"
        assert line.startswith(image) and expected in line and second["class"] in line


def test_several_models_stand_side_by_side_and_zero_shot_takes_their_names(run, tool, photos):
    models = [run("CoOp"), run("VPT"), run("ZeroshotCLIP")]
    rows = rows_of(tool, *models, photos / "a.jpg", photos / "b.png", "--topk", 9)
    assert [row["model"] for row in rows] == ["CoOp", "VPT", "ZeroshotCLIP"] * 2
    assert {len(row["top"]) for row in rows} == {3}
    alone = rows_of(tool, models[2], photos / "a.jpg", "--classes", "red", "green field", "blue lake", "--topk", 9)
    for row in (*alone, rows[2]):  # both have the dataset's sentence, not that of a backbone alone
        for top in row["top"]:
            top["probability"] = pytest.approx(top["probability"], abs=1e-6)
    assert alone == rows[2:3]
    rows = rows_of(tool, models[0], models[0], photos / "a.jpg")
    assert [row["model"] for row in rows] == [f"CoOp {models[0]}"] * 2


def test_zero_shot_needs_a_backbone_and_names_only(tool, photos, deep):
    names = ["a cat", "a dog"]
    rows = rows_of(tool, photos / "a.jpg", "--backbone", deep, "--classes", *names, "--template", "{} in winter")
    clip = load_backbone(str(deep))
    image = PromptedClassifier.zero_shot(str(deep), names).transform(Image.open(photos / "a.jpg").convert("RGB"))
    logits, _ = clip(image[None], tokenize(["a cat in winter", "a dog in winter"]))
    expected = dict(zip(names, logits[0].softmax(dim=0).tolist(), strict=True))
    assert {top["class"]: top["probability"] for top in rows[0]["top"]} == pytest.approx(expected, abs=1e-5)


def test_class_names_from_a_file(run, tool, photos, tmp_path):
    file = tmp_path / "names.txt"
    file.write_bytes("\ufeffa red lake\r\n\r\n  caf\u00e9 \n".encode())
    rows = rows_of(tool, run("CoOp"), photos / "a.jpg", "--classes-file", file)
    assert {top["class"] for top in rows[0]["top"]} == {"a red lake", "café"}


def unreadable(folder: Path) -> list[Path]:
    (folder / "text.jpg").write_text("no image")
    (folder / "short.png").write_bytes((folder / "good.png").read_bytes()[:60])
    os.mkfifo(folder / "pipe.png")
    return [folder / "text.jpg", folder / "short.png", folder / "pipe.png", folder / "missing.png"]


def test_unreadable_images_are_reported_and_skipped(run, tool, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "good.png")
    bad = unreadable(tmp_path)
    done = tool(predict, run("CoOp"), bad[0], tmp_path / "good.png", *bad[1:], "--json")
    assert done.status == 1
    assert [row["image"] for row in json.loads(done.printed)] == [str(tmp_path / "good.png")]
    assert len(done.errors) == 4
    assert all(line.startswith("skipped: ") and str(file) in line for line, file in zip(done.errors, bad, strict=True))


@pytest.mark.parametrize("form", ["--json", "--csv"])
def test_no_readable_image_at_all_is_an_error(form, run, tool, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "good.png")
    bad = unreadable(tmp_path)
    for file in bad:
        done = tool(predict, run("CoOp"), file, form)
        assert (done.status, len(done.errors)) == (2, 1)
        assert done.errors[0].startswith("error: ") and str(file) in done.errors[0]
    done = tool(predict, run("CoOp"), *bad, form)
    assert (done.status, len(done.errors)) == (2, 5)
    assert "none of the 4 images could be read" in done.errors[-1]


LONG = "a very " * 80 + "long name"
WRONG = {
    "no model": (["{photos}"], "{photos} is not a model"),
    "nothing there": (["/nowhere", "{photos}"], "/nowhere is not a model"),
    "no image": (["{run}"], "no images are given"),
    "an empty folder": (["{run}", "{empty}"], "no images in {empty}"),
    "a name of many tokens": (
        ["{run}", "{photos}", "--classes", "red", LONG],
        "tokens, the text tower has 77 positions",
    ),
    "a name given twice": (["{run}", "{photos}", "--classes", "red", "blue", " red"], "'red' is given 2 times"),
    "an empty name": (["{run}", "{photos}", "--classes", "red", " "], "a class name is empty"),
    "zero-shot without names": (["--backbone", "small", "{photos}"], "zero-shot CLIP has no class names"),
    "an unknown backbone": (["--backbone", "smal", "{photos}", "--classes", "a", "b"], "unknown backbone 'smal'"),
    "no file of names": (["{run}", "{photos}", "--classes-file", "/nowhere"], "cannot read /nowhere"),
    "a pipe of names": (["{run}", "{photos}", "--classes-file", "{pipe}"], "is not a regular file"),
    "an empty file of names": (["{run}", "{photos}", "--classes-file", "/dev/null"], "/dev/null"),
    "an epoch that is not there": (["{run}", "{photos}", "--load-epoch", "7"], "model.pth.tar-7"),
    "a test's folder": (["{tested}", "{photos}"], "give the output folder of a training run"),
    "a device that is not there": (["{run}", "{photos}", "--device", "tpu"], "no device 'tpu'"),
    "a checkpoint without settings": (
        ["{checkpoint}", "{photos}"],
        "name the YAML file of its method by --config-file",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_end_in_one_line(name, run, tool, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    places = {"photos": photos, "run": run("CoOp"), "empty": tmp_path / "empty", "pipe": tmp_path / "pipe"}
    places |= {"checkpoint": run("CoOp") / "prompt_learner", "tested": run("MaPLe", "new", model_dir=run("MaPLe"))}
    arguments, reason = WRONG[name]
    done = tool(predict, *(argument.format(**places) for argument in arguments))
    assert (done.status, done.printed, len(done.errors)) == (2, "", 1), done.errors
    assert reason.format(**places) in done.errors[0]


def test_run_without_a_finished_training_is_refused(run, tool, photos, tmp_path):
    folder = shutil.copytree(run("CoOp"), tmp_path / "run")
    (folder / "results.json").unlink()
    done = tool(predict, folder, photos)
    assert (done.status, len(done.errors)) == (2, 1)
    assert "is not finished: it has no results.json" in done.errors[0] and "--load-epoch" in done.errors[0]
    assert len(rows_of(tool, folder, photos, "--load-epoch", 1)) == 5
    (folder / "config.yaml").write_text("TRAINER: [")
    done = tool(predict, folder, photos, "--load-epoch", 1)
    assert (done.status, len(done.errors)) == (2, 1)


def test_class_specific_contexts_take_no_other_names(run, tool, photos):
    folder = run("CoOp", "base", "TRAINER.COOP.CSC", True, "TRAINER.COOP.CTX_INIT", "")
    assert len(rows_of(tool, folder, photos)) == 5
    assert len(rows_of(tool, folder, photos, "--classes", "red", "green field", "blue_lake")) == 5
    for names in (["a", "b"], ["a", "b", "c"]):
        done = tool(predict, folder, photos, "--classes", *names)
        assert (done.status, len(done.errors)) == (2, 1)
        assert "has a context for each class that it was learned on: leave out the class names" in done.errors[0]


# Published checkpoints


def test_published_checkpoint_needs_its_yaml_and_class_names(run, tool, photos, deep, tmp_path):
    ours = torch.load(run("MaPLe") / "MultiModalPromptLearner/model.pth.tar-1", weights_only=True)
    state = {f"module.{key}": value for key, value in ours["state_dict"].items()}
    state["module.prompt_learner.token_prefix"] = torch.zeros(50, 1, 64)
    (tmp_path / "published/MultiModalPromptLearner").mkdir(parents=True)
    file = tmp_path / "published/MultiModalPromptLearner/model.pth.tar-5"
    torch.save({"state_dict": state, "epoch": 5}, file)
    config = ROOT / "configs/trainers/MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml"
    settings = tmp_path / "MaPLe/settings.yaml"  # for images of 32 px
    settings.parent.mkdir()
    settings.write_text(f"_BASE_: {config}\nINPUT:\n  SIZE: (32, 32)\n")
    options = ["--config-file", settings, "--backbone", deep, "--classes", "red", "green field", "blue lake"]
    expected = rows_of(tool, run("MaPLe"), photos)
    for model in (tmp_path / "published", file.parent, file):
        assert rows_of(tool, model, photos, *options) == expected
    done = tool(predict, file, photos, *options[:4])
    assert (done.status, len(done.errors)) == (2, 1) and "no class names: give them by --classes" in done.errors[0]
    done = tool(predict, file, photos, *options, "--trainer", "CoOp")
    assert (done.status, len(done.errors)) == (2, 1) and "is a checkpoint of MaPLe, not of CoOp" in done.errors[0]


# Exporting


@pytest.mark.slow
@pytest.mark.parametrize("method", ["MPL", "MaPLe", "CoOp", "PromptSRC", "VPT"])
def test_onnx_and_torch_export_agree_with_predict(method, run, tool, deep, eurosat, tmp_path):
    images = list(drawn(eurosat, range(6)))
    folder = tmp_path / "exported/deeper"
    done = tool(export, run(method), "--to", folder, "--onnx", "--torch", "--images", *images)
    assert done.status == 0, done.errors
    assert len(re.findall(r"largest difference of a logit on 24 images: (\S+)", done.printed)) == 2
    classifier = PromptedClassifier.from_folder(folder, str(deep))
    expected = classifier.logits(images)
    pixels = torch.stack([classifier.transform(classifier.read(image)) for image in images])
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (logits,) = session.run(None, {"images": pixels.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=0, atol=1e-3)
    extra = {"class_names": ""}
    program = torch.export.load(folder / "model.pt2", extra_files=extra).module()
    torch.testing.assert_close(program(pixels), expected, rtol=0, atol=1e-3)
    assert json.loads(extra["class_names"]) == classifier.class_names
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == classifier.class_names
    assert onnx.load(folder / "model.onnx").opset_import[0].version == programs.OPSET
    rows = rows_of(tool, run(method), *images, "--topk", 1)
    top = expected.softmax(dim=1).max(dim=1)
    assert [row["top"][0]["class"] for row in rows] == [classifier.class_names[index] for index in top.indices]
    assert [row["top"][0]["probability"] for row in rows] == pytest.approx(top.values.tolist(), abs=1e-4)


def test_class_matrix_and_a_plain_image_tower_give_the_same_logits(run, tool, deep, eurosat, tmp_path):
    images = list(drawn(eurosat, range(6)))
    names = ["grey", "white snow"]
    done = tool(export, run("CoOp"), "--to", tmp_path / "out", "--weights", "--classes", *names)
    assert done.status == 0, done.errors
    tensors = load_file(tmp_path / "out/class_matrix.safetensors")
    classifier = PromptedClassifier.from_folder(tmp_path / "out", str(deep))
    pixels = torch.stack([classifier.transform(classifier.read(image)) for image in images])
    with torch.no_grad():
        features = load_backbone(str(deep)).encode_image(pixels, normalize=True)
    logits = tensors["logit_scale"] * features @ tensors["class_matrix"].T
    torch.testing.assert_close(logits, classifier.logits(images, names), rtol=0, atol=1e-3)
    assert tensors["class_matrix"].dtype == torch.float32 and tensors["class_matrix"].shape[0] == 2


def refused(done, folder: Path, *words: str) -> None:
    assert (done.status, len(done.errors)) == (2, 1), done.errors
    assert [word for word in words if word not in done.errors[0]] == []
    assert list(folder.iterdir()) == []  # nothing half-written


@pytest.mark.parametrize("form", ["--onnx", "--torch", "--weights"])
def test_text_that_depends_on_the_image_is_not_exported(form, run, tool, tmp_path):
    done = tool(export, run("CoCoOp"), "--to", tmp_path / "out", form)
    refused(done, tmp_path, "the text features of CoCoOp depend on the image", "tools/predict.py")


def test_class_matrix_of_vision_prompts_is_refused(run, tool, tmp_path):
    refused(tool(export, run("VPT"), "--to", tmp_path / "out", "--weights"), tmp_path, "VPT has vision prompts")


def test_difference_over_the_tolerance_is_an_error(run, tool, tmp_path, monkeypatch):
    form = programs.FORMS["weights"]
    wrong = form._replace(run=lambda *arguments: form.run(*arguments) + 0.002)
    monkeypatch.setitem(programs.FORMS, "weights", wrong)
    done = tool(export, run("CoOp"), "--to", tmp_path / "out", "--weights")
    refused(done, tmp_path, "class_matrix.safetensors gives other logits", "over 0.001")


def test_folder_with_files_is_not_overwritten(run, tool, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    done = tool(export, run("CoOp"), "--to", tmp_path)
    assert (done.status, len(done.errors)) == (2, 1) and "is not empty" in done.errors[0]
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
    assert tool(export, run("CoOp"), "--to", tmp_path / "new").status == 0
