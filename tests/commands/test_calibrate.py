"""Calibrations of runs: fitted on held-out images, used by every command, refused where they
promise nothing.
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from drawn import results
from learned import images_of, rows_of
from marks import of_json, to_json
from PIL import Image
from yacs.config import CfgNode

from common.files import RESULTS_FILE
from common.results import CALIBRATION
from common.version import __version__
from inference import calibrate_command as calibrate
from inference import export, export_formats, predict
from inference.calibrated import calibration_in
from inference.calibration import softmax
from inference.load import load
from runs.open_world import is_union

pytestmark = pytest.mark.slow
ASKED = ("TEST.CALIBRATE", True)
NEW = ("DATASET.SUBSAMPLE_CLASSES", "new", *ASKED, "DATASET.NUM_SHOTS", -1)


@pytest.fixture(scope="module")
def calibrated(finished):
    """The folder of a run on base classes with a calibration."""
    return finished("CoOp", "base", *ASKED, "DATASET.NUM_SHOTS", -1)


@pytest.fixture
def labelled(eurosat, tmp_path):
    """120 noisy images of the base classes in folders, named after them."""
    rng = np.random.default_rng(1)  # 0 gives the noise of the training images
    for file, name in images_of(eurosat, range(3)).items():
        folder = tmp_path / "mine" / name
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.asarray(Image.open(file).convert("RGB"), dtype=int)
        for number in range(10):
            noisy = np.clip(pixels + rng.integers(-99, 99, pixels.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / f"{Path(file).stem}{number}.png")
    return tmp_path / "mine"


@pytest.fixture
def fitted(calibrated, labelled, command, tmp_path):
    """A copy of the run, calibrated on the labelled images for an error that these can promise."""
    folder = shutil.copytree(calibrated, tmp_path / "run")
    done = command.works(calibrate, folder, "--images", labelled, "--error", 0.9, "--by-class")
    return folder, done.printed


def test_a_run_reports_what_its_calibration_changes(calibrated, finished):
    found = results(calibrated)["calibration"]
    base = calibration_in(calibrated)
    of_images = found["images"], found["sha256"], found["test_images"]
    assert of_images == (12, base.sha256, 0) and base.threshold is None
    assert found["before"]["nll"] == pytest.approx(results(calibrated)["nll"], abs=1e-5)
    assert found["before"]["ece"] == pytest.approx(results(calibrated)["ece"], abs=1e-3)
    arrays = np.load(calibrated / "predictions.npz")
    cooled = torch.from_numpy(base.temperature.apply(arrays["logits"]))
    nll = torch.nn.functional.cross_entropy(cooled, torch.from_numpy(arrays["label"]).long()).item()
    assert found["after"]["nll"] == pytest.approx(nll, abs=1e-6)
    assert set(found["sets"]) == {"lac", "aps", "raps"}
    new, plain = (
        finished("CoOp", "new", *asked, "DATASET.NUM_SHOTS", -1, tests=calibrated)
        for asked in (ASKED, ())
    )
    changed = results(new)["calibration"]
    assert changed["temperature"] == base.temperature.temperature
    assert not (new / CALIBRATION).exists()
    assert changed["before"]["nll"] != changed["after"]["nll"]
    assert results(new)["accuracy"] == results(plain)["accuracy"]


def test_the_command_finds_what_the_run_found(calibrated, command, tmp_path):
    before = calibration_in(calibrated)
    folder = shutil.copytree(calibrated, tmp_path / "runs/run")
    (folder / CALIBRATION).unlink()
    done = command.works(calibrate, tmp_path / "runs")
    assert "new classes:" in done.printed
    after = calibration_in(folder)
    assert after.sha256 == before.sha256 and after.images == before.images == 12
    assert after.temperature.temperature == pytest.approx(before.temperature.temperature, rel=1e-4)
    assert after.sets.label_scores == pytest.approx(before.sets.label_scores, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "seed", "file"), [("SmallLand", -1, "split.json"), ("ImageFolder", 1, "split_seed1.")]
)
def test_nothing_is_written_to_the_images_of_a_run(name, seed, file, finished, command, tmp_path):
    folder = shutil.copytree(finished("ZeroshotCLIP"), tmp_path / "run")
    (tmp_path / "data/one").mkdir(parents=True)
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["DATASET"] |= {"NAME": name, "SPLIT_SEED": seed, "ROOT": str(tmp_path / "data")}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    assert file in command(calibrate, folder).error
    assert list((tmp_path / "data").rglob("*")) == [tmp_path / "data/one"]


def test_a_run_with_images_elsewhere_says_where_to_start(finished, command, tmp_path):
    folder = shutil.copytree(finished("CoOp", "base"), tmp_path / "run")
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["DATASET"]["ROOT"] = "elsewhere"
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    error = command(calibrate, folder).error
    assert "there is no file elsewhere/" in error and "start where the run was started" in error


@pytest.mark.parametrize(("method", "split"), [("CoOp", "val"), ("TDA", "test")])
def test_a_report_is_of_what_a_prediction_says_of_test_images(
    method, split, finished, command, tmp_path
):
    saved = ("TEST.SPLIT", split, "TEST.SAVE_LOGITS", True, "DATASET.NUM_SHOTS", -1)
    folder = shutil.copytree(finished(method, "base", *saved), tmp_path / "run")
    report = command(calibrate, folder).printed
    (folder / "predictions.npz").unlink()
    assert "before" in report and command(calibrate, folder).printed == report


def test_the_same_answers_everywhere(fitted, command, eurosat, photos, deep, tmp_path):
    folder, printed = fitted
    out = tmp_path / "out"
    assert "Fitted on 120 images in mine" in printed and "green field: cover" in printed
    files = list(images_of(eurosat, range(3)))
    line = *files, "--unknown", "--sets", 0.9, "--topk", 3
    rows = rows_of(command, folder, *line)
    command.works(export, folder, "--to", out)
    assert "fitted on 120 images" in (out / "README.md").read_text()
    assert rows_of(command, out, *line, "--backbone", deep) == rows
    classifier = load(out, backbone=str(deep))
    names = classifier.class_names
    logits = classifier.logits(files)
    fit = calibration_in(folder)
    written = export_formats.metadata(classifier, names)["calibration"]
    assert json.loads(written) == of_json(out / CALIBRATION)
    unknown = ~fit.threshold.apply(logits)
    sets = fit.sets.apply(logits, 0.9)
    said = classifier.predict(files)
    assert [row["unknown"] for row in rows] == unknown.tolist() == said.unknown.tolist()
    assert [dict(top) for top in said.sets(0.9)] == [
        {each["class"]: pytest.approx(each["probability"]) for each in row["set"]} for row in rows
    ]
    assert said.labels == [row["top"][0]["class"] for row in rows]
    same = classifier.predict(files[:2], [name.replace(" ", "_") for name in names])
    assert same.unknown.tolist() == said.unknown.tolist()[:2]
    assert [{each["class"] for each in row["set"]} for row in rows] == [
        {names[index] for index in np.flatnonzero(members)} for members in sets
    ]
    expected = torch.from_numpy(fit.temperature.apply(logits)).softmax(dim=-1).float()
    torch.testing.assert_close(classifier.probabilities(files), expected)


def test_other_class_names_get_the_temperature_alone(fitted, command, eurosat):
    folder, _ = fitted
    classifier = load(folder)
    files = list(images_of(eurosat, range(6)))
    others = ["grey", "white snow", "red"]
    cooled = classifier.calibration.temperature.apply(classifier.logits(files, others))
    expected = torch.from_numpy(cooled).softmax(dim=-1).float()
    torch.testing.assert_close(classifier.probabilities(files, others), expected)
    done = command(predict, folder, files[0], "--sets", 0.9, "--classes", *others)
    assert "is of other class names" in done.error


def copied(images, folder):
    """Copies of images in folders with their class names."""
    for number, (file, name) in enumerate(images.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / name / f"other name {number}.png")
    return folder


@pytest.mark.parametrize(
    ("options", "words"),
    [
        *(
            (
                ["--error", error],
                "12 images cannot promise an error of at most 1%: give at least 299",
            )
            for error in ("1%", 1, 0.01)
        ),
        (["--images", "{photos}"], "is named after no class of the model"),
        (["--images", "{photos}/below"], "no folder of images"),
        (["--images", "{copies}"], "12 of 12 images for the calibration are test images"),
        (["--images", "{learned}"], "24 of 24 images for the calibration are training images"),
        (["--images", "{missing}"], "there is no folder"),
        (["--error", 1e-320], "12 images cannot promise"),
        (["--error", 200], "a percentage such as 5, or a share such as 0.05"),
    ],
)
def test_wrong_requests_are_refused_and_change_nothing(
    options, words, calibrated, command, eurosat, photos, tmp_path
):
    places = {"photos": photos, "missing": tmp_path / "missing"}
    for name, part in (("copies", "test"), ("learned", "train")):
        places[name] = tmp_path / name
        copied(images_of(eurosat, range(3), part), places[name])
    before = (calibrated / CALIBRATION).read_bytes()
    assert json.loads(before)["version"] == __version__ and json.loads(before)["date"]
    done = command(calibrate, calibrated, *(str(option).format(**places) for option in options))
    assert words in done.error
    assert (calibrated / CALIBRATION).read_bytes() == before


def test_a_calibration_on_other_images_says_what_it_replaces(fitted, labelled, command):
    folder, _ = fitted
    images = "--images", labelled
    assert "replaces" not in command.works(calibrate, folder, *images).printed
    before = calibration_in(folder)
    shutil.rmtree(min(labelled.iterdir()))
    done = command.works(calibrate, folder, *images)
    assert f"This replaces the calibration on {before}" in done.printed


def test_test_images_mark_a_calibration(calibrated, command, eurosat, tmp_path):
    folder = shutil.copytree(calibrated, tmp_path / "run")
    images = copied(images_of(eurosat, range(3)), tmp_path / "copies")
    first = next(images.glob("*/*"))
    first.rename(tmp_path / first.name)
    first.symlink_to(tmp_path / first.name)
    done = command.works(calibrate, folder, "--images", images, "--accept-test-images")
    assert "12 of them test images" in done.printed
    assert calibration_in(folder).test_images == 12


def test_a_folder_with_a_link_is_not_calibrated(calibrated, command, tmp_path):
    folder = shutil.copytree(calibrated, tmp_path / "run")
    before = (folder / CALIBRATION).read_bytes()
    (folder / "notes.txt").symlink_to(tmp_path / "elsewhere")
    assert f"{folder}/notes.txt is a link" in command(calibrate, folder).error
    assert (folder / CALIBRATION).read_bytes() == before


def test_without_a_calibration_nothing_is_promised(calibrated, command, photos, tmp_path):
    folder = shutil.copytree(calibrated, tmp_path / "run")

    def refusal(*options):
        return command(predict, folder, photos / "a.jpg", *options).error

    assert f"the calibration of {folder} on 12" in refusal("--unknown")
    error = refusal("--sets", 0.99)
    assert "cannot promise sets for 99% of the images" in error and "at least 99" in error
    assert "1 may be 1% or all: write 1%" in refusal("--sets", 1)
    assert "a share such as 0.05, got '%'" in refusal("--sets", "%")
    (folder / CALIBRATION).write_text('{"images": 1}')
    assert f"{CALIBRATION} is not a calibration" in refusal()
    assert command(calibrate, folder).status == 0 and calibration_in(folder).images == 12
    (folder / CALIBRATION).unlink()
    assert "has no calibration" in refusal("--unknown")


def test_a_calibration_is_of_one_checkpoint(fitted, calibrated, command, photos, tmp_path):
    folder, _ = fitted
    image, (first,) = photos / "a.jpg", folder.glob("*/model.pth.tar-1")
    command.works(export, folder, "--to", tmp_path / "out")
    content = torch.load(first, weights_only=True)
    torch.save(content | {"epoch": 2}, first.with_name("model.pth.tar-2"))
    first.with_name("checkpoint").write_text("model.pth.tar-2")
    of_first = rows_of(command, folder, image, "--unknown", "--load-epoch", 1)
    error = command(predict, folder, image).error
    assert "is of model.pth.tar-1" in error and "fit it again" in error
    done = command(predict, folder, image, "--sets", 0.9, "--load-epoch", 2)
    assert "leave out --load-epoch" in done.error
    other = command.works(predict, folder, image, "--load-epoch", 2, "--json")
    assert "Not calibrated" in other.errors[0]
    assert json.loads(other.printed)[0]["top"] != of_first[0]["top"]
    for name in (CALIBRATION, f"../out/{CALIBRATION}"):  # of other models
        copied = shutil.copytree(calibrated, tmp_path / "copy", dirs_exist_ok=True)
        torch.save(content | {"epoch": 3}, next(copied.glob("*/model.pth.tar-1")))
        shutil.copy(folder / name, copied)
        assert "not of" in command(predict, copied, image).error
    assert command(calibrate, copied).status == 0 and command(predict, copied, image).status == 0


def test_runs_without_a_calibration_do_not_stop_the_others(calibrated, command, tmp_path):
    folders = [shutil.copytree(calibrated, tmp_path / f"runs/{name}") for name in "abc"]
    for folder in folders:
        (folder / CALIBRATION).unlink()
    next(folders[0].glob("*/model.pth.tar-1")).write_text("damaged")
    (folders[1] / "config.yaml").write_text("TRAINER: [")
    done = command(calibrate, tmp_path / "runs")
    assert "2 of 3 models" in done.error and done.printed.count("Not calibrated: ") == 2
    assert [(folder / CALIBRATION).is_file() for folder in folders] == [False, False, True]


def test_new_classes_need_the_calibration_of_the_base(launch, argv):
    done = launch(*argv("ZeroshotCLIP", *ASKED, "DATASET.SUBSAMPLE_CLASSES", "new"))
    assert f"has no {CALIBRATION}" in done.error


def test_new_classes_of_a_method_without_training(finished):
    base = finished("ZeroshotCLIP", "base", *ASKED, "DATASET.NUM_SHOTS", -1)
    found = results(finished("ZeroshotCLIP", *NEW[1:], tests=base))["calibration"]
    assert found["temperature"] == calibration_in(base).temperature.temperature != 1
    assert found["after"] != found["before"]


@pytest.mark.parametrize(
    ("dataset", "classes", "expected"),
    [("EuroSAT", "base", True), ("DTD", "base", False), ("EuroSAT", "new", False)],
)
def test_base_and_new_classes_are_of_the_dataset_of_the_model(dataset, classes, expected, tmp_path):
    to_json(tmp_path / RESULTS_FILE, {"accuracy": 50.0, "dataset": dataset, "classes": classes})
    cfg = CfgNode({"DATASET": {"NAME": "EuroSAT", "SUBSAMPLE_CLASSES": "all"}})
    spec = SimpleNamespace(cfg=cfg, args=SimpleNamespace(model_dir=tmp_path))
    assert is_union(spec) == expected


def test_base_and_new_classes_together(calibrated, finished):
    every = "TEST.SAVE_LOGITS", True, "DATASET.NUM_SHOTS", -1
    union = finished("CoOp", "all", *every, tests=calibrated)
    found = results(union)["open_world"]
    arrays = np.load(union / "predictions.npz")
    logits = arrays["logits"].astype(float)
    labels = arrays["label"]
    halves = [(logits[:, :3], labels[labels < 3]), (logits[:, 3:], labels[labels >= 3] - 3)]
    right = [z[labels // 3 == half].argmax(axis=1) == y for half, (z, y) in enumerate(halves)]
    p = softmax(logits)[:, :3].max(axis=1)
    pairs = p[labels < 3][:, None] > p[labels >= 3]
    expected = (pairs & right[0][:, None] & right[1]).mean()
    assert found["openworld_auc"] == pytest.approx(100 * expected)
    assert found["base_accuracy"] == pytest.approx(results(calibrated)["accuracy"])
    assert "open_world" not in results(calibrated)
