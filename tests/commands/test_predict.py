"""Predicting: runs and published checkpoints give the numbers of a run's test, and bad input ends
in one line.
"""

import csv
import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from drawn import METHODS
from learned import own_test, rows_of
from marks import one_line, parquet_library, thorough_but
from PIL import Image

from common.start import ROOT
from fit.read_images import find
from inference import batches, export, formats, predict, sharding
from inference.arguments import given_class_names
from inference.inspection import command as inspect_command
from inference.load import load
from inference.options import LoadOptions

pytestmark = pytest.mark.slow

QUICK = "MPL", "CoCoOp", "VPT"


# The same numbers as a run's test


@pytest.mark.parametrize("method", thorough_but(QUICK, METHODS))
def test_logits_are_those_of_the_runs_test(method, finished, command):
    smaller = ("TRAINER.LOCOOP.TOPK", 0.2) if method == "LoCoOp" else ()  # of three classes
    folder = finished(method, "base", *smaller)
    classifier = load(folder)
    for classes in ("base", "new", "base"):
        files, expected, names = own_test(folder, classes)
        given = names if classes == "new" else None
        found = classifier.logits(files, given)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert classifier.class_names == [name.replace("_", " ") for name in names]


def test_sentences_are_those_of_the_dataset_and_not_of_its_title(
    finished, stand_in, command, deep, tmp_path
):
    """TCP has a sentence for OxfordPets; with another title, predictions had the one for unknown
    datasets.
    """
    stand_in("OxfordPets")
    folder = finished("TCP", "base", "DATASET.NAME", "OxfordPets", "DATASET.TITLE", "my pets")
    files, expected, _ = own_test(folder, "base")
    command.works(export, folder, "--to", tmp_path / "out")
    for model in (folder, tmp_path / "out"):
        classifier = load(model, LoadOptions(backbone=str(deep)))
        torch.testing.assert_close(classifier.logits(files), expected, rtol=0, atol=1e-5)
        assert classifier.description.dataset == classifier.cfg.DATASET.TITLE == "my pets"


def test_load_reads_a_run_its_checkpoints_and_published_ones(finished, command, eurosat, tmp_path):
    folder = finished("MPL", "base")
    files, expected, names = own_test(folder, "base")
    (checkpoint,) = folder.glob("*/model.pth.tar-*")
    bare = {"config_file": folder / "config.yaml", "method": "MPL"}
    bare["class_names"] = [name.replace("_", " ") for name in names]
    opened = [(path, {}) for path in (folder, str(folder), checkpoint, checkpoint.parent)]
    for path, options in [*opened, (shutil.copy(checkpoint, tmp_path), bare)]:
        classifier = load(path, max_pixels=32 * 32, **options)
        assert classifier.class_names == bare["class_names"]
        torch.testing.assert_close(classifier.logits(files), expected, rtol=0, atol=1e-5)
        contents = [Path(file).read_bytes() for file in files[:2]]
        assert torch.equal(classifier.logits(contents), classifier.logits(files[:2]))
        assert torch.equal(classifier.logits(contents[0]), classifier.logits(files[0]))
    large = tmp_path / "large.png"
    Image.new("RGB", (33, 32)).save(large)
    with one_line("has more than 1,024 pixels", "--max-pixels"):
        classifier.logits([large])
    assert "1,055 pixels" in command(predict, folder, large, "--max-pixels", 1055).error
    command.works(predict, folder, large, "--max-pixels", 1056)
    with one_line("is not a model"):
        load(large)
    with one_line("no model at"):
        load(tmp_path / "gone")


def test_arrays_are_images_and_other_values_are_named(finished, photos):
    classifier = load(finished("CoOp"))
    file = photos / "b.png"
    pixels = np.asarray(Image.open(file).convert("RGB"))
    for images in (pixels, pixels[None], np.array([str(file)])):
        assert torch.equal(classifier.logits(images), classifier.logits(file))
    for image, words in {None: "NoneType", 3: "int", 0.5: "float"}.items():
        with one_line(f"{words} is not an image", "give a path, bytes, a PIL image, or an array"):
            classifier.logits([image])
    with one_line("an array of type uint8 and shape (50, 40) is not an image"):
        classifier.logits([pixels[..., 0]])


# Forms of output and bad input


def test_table_csv_and_json_have_the_same_figures(finished, command, photos):
    line = finished("CoOp"), photos, "--topk", 2
    rows = rows_of(command, *line)
    files = [str(photos / name) for name in ("a.jpg", "b.png", "below/c.PNG", "d.webp", "e f.bmp")]
    assert [row["image"] for row in rows] == files
    table = [["path", "model", "answer", "probability", "answer_2", "probability_2"]]
    for row in rows:
        first, second = row["top"]
        assert first["probability"] >= second["probability"]
        table.append([row["image"], "CoOp", *map(str, (*first.values(), *second.values()))])
    assert list(csv.reader(io.StringIO(command(predict, *line, "--csv").printed))) == table
    printed = command(predict, *line).printed.splitlines()
    for line, row in zip(printed, rows, strict=True):
        columns = [f"{top['class']:<11} {100 * top['probability']:5.1f} %" for top in row["top"]]
        assert line.startswith(row["image"]) and line.endswith("   ".join(columns))


def test_columns_of_the_table_fit_the_class_names_of_all_models(finished, command, photos):
    models = finished("CoOp", "base"), finished("MPL", "new")
    lines = command(predict, *models, photos / "a.jpg", photos / "b.png").printed.splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1


def test_the_ending_of_a_file_decides_its_form(finished, command, photos, tmp_path):
    line = finished("CoOp"), photos
    printed = {}
    for form in ("csv", "json", "jsonl"):
        printed[form] = command(predict, *line, "--format", form).printed
        file = tmp_path / f"answers.{form.upper()}"
        assert command.works(predict, *line, "--to", file).printed == f"Written: {file}\n"
        assert file.read_text() == printed[form]
    rows = json.loads(printed["json"])
    assert [json.loads(line) for line in printed["jsonl"].splitlines()] == rows
    timm = ["--results-file", tmp_path / "answers.txt", "--results-format", "csv", "--topk", 1]
    command.works(predict, *line, *timm)
    header, *lines = (tmp_path / "answers.txt").read_text().splitlines()
    assert header == "path,model,answer,probability" and len(lines) == len(rows)
    # As images with labels, which somebody has corrected
    (tmp_path / "labels.csv").write_text("\n".join([header.replace("answer", "label"), *lines]))
    labels = {photo.path: photo.label for photo in find(tmp_path / "labels.csv")}
    assert labels == {row["image"]: row["top"][0]["class"] for row in rows}


def test_parquet_has_the_columns_of_csv(finished, command, photos, tmp_path):
    parquet = parquet_library().parquet
    odd = shutil.copy(photos / "b.png", tmp_path / os.fsdecode(b"\xff.png"))
    line = finished("CoOp"), photos, odd
    command.works(predict, *line, "--to", tmp_path / "answers.parquet")
    found = parquet.read_table(tmp_path / "answers.parquet").to_pylist()
    for written, row in zip(found, rows_of(command, *line), strict=True):
        second = row["top"][1]
        assert written["path"] == row["image"].replace("\udcff", r"\udcff")
        assert written["answer_2"] == second["class"]
        assert written["probability_2"] == pytest.approx(second["probability"])


def test_a_folder_has_answers_in_shards(finished, command, photos, tmp_path, monkeypatch):
    parquet = parquet_library().parquet
    monkeypatch.setattr(sharding, "SHARD", 2)
    images = shutil.copytree(photos, tmp_path / "photos")
    (images / "broken.png").write_bytes(b"no image")
    models = [finished("CoOp"), finished("MPL")]
    opened = []
    original = batches.read_bytes
    monkeypatch.setattr(
        batches, "read_bytes", lambda file, most: opened.append(file) or original(file, most)
    )
    line = [*models, images, "--topk", 2, "--to", f"{tmp_path}/answers/"]
    for part in ("2/2", "1/2"):
        done = command(predict, *line, "--shard", part)
        assert done.status == int(part == "2/2"), done.errors
    assert len(opened) == 6  # by two models
    files = sorted((tmp_path / "answers").glob("*.parquet"))
    before = [file.read_bytes() for file in files]
    found = [row for file in files for row in parquet.read_table(file).to_pylist()]
    (bad,) = [row for row in found if row["error"]]
    assert bad["path"] == str(images / "broken.png") and bad["answer"] is None
    good = {(row["path"], row["model"]): row["answer"] for row in found if not row["error"]}
    rows = rows_of(command, *models, *sorted({path for path, _ in good}))
    assert good == {(row["image"], row["model"]): row["top"][0]["class"] for row in rows}
    opened.clear()
    files[1].unlink()
    assert command(predict, *line).status == 1
    assert len(opened) == 2 and [file.read_bytes() for file in files] == before
    done = command(predict, *line[:-4], "--topk", 1, "--to", f"{tmp_path}/answers/")
    assert "has answers of another model, other options" in done.error


def test_an_interrupted_prediction_leaves_what_was_there(
    finished, command, photos, tmp_path, monkeypatch
):
    file = tmp_path / "answers.csv"
    file.write_text("of before")

    def interrupted(out, rows, _):
        out.write(str(next(iter(rows))))
        raise KeyboardInterrupt

    monkeypatch.setitem(formats.PRINTED, "csv", interrupted)
    done = command(predict, finished("CoOp"), photos, "--to", file)
    assert done.status == 130 and "Written" not in done.printed
    assert [path.name for path in tmp_path.iterdir()] == ["answers.csv"]
    assert file.read_text() == "of before"


def test_small_lists_the_class_names_without_training(command, photos):
    line = "--backbone", "small", photos / "a.jpg", "--classes", "red stars", "teapot", "crescent"
    errors = command.works(predict, *line).errors
    assert "no word of 2 of 3 class names, such as 'teapot'" in errors[0]


def test_images_in_lists_and_tars_are_answered(finished, command, photos, tmp_path):
    names = ["a.jpg", "b.png"]
    (tmp_path / "list.txt").write_text("".join(f"{photos / name}\n" for name in names))
    (tmp_path / "list.csv").write_text("\n".join(["path", *(str(photos / one) for one in names)]))
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        for name in names:
            archive.add(photos / name, name)
    model = finished("CoOp")
    expected = rows_of(command, model, *(photos / name for name in names))
    for file in ("list.txt", "list.csv", "images.tar"):
        rows = rows_of(command, model, tmp_path / file)
        assert [row["top"] for row in rows] == [row["top"] for row in expected]
    (tmp_path / "empty.txt").write_text("\n")
    assert "no images are given" in command(predict, model, tmp_path / "empty.txt").error


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_an_unfinished_file_of_a_killed_command_is_deleted(
    ending, finished, command, photos, tmp_path
):
    ended = subprocess.Popen(["true"])
    ended.wait()
    of_killed, of_running = (
        tmp_path / f".answers.{ending}.{process}-1.partial" for process in (ended.pid, os.getppid())
    )
    of_killed.touch()
    of_running.touch()
    command.works(predict, finished("CoOp"), photos, "--to", tmp_path / f"answers.{ending}")
    assert of_running.exists() and not of_killed.exists()


def test_unreadable_images_are_reported_and_skipped(finished, command, tmp_path):
    good, *bad = (
        tmp_path / name for name in ("good.png", "text.jpg", "short.png", "pipe.png", "missing.png")
    )
    Image.new("RGB", (32, 32)).save(good)
    bad[0].write_text("no image")
    bad[1].write_bytes(good.read_bytes()[:60])
    os.mkfifo(bad[2])
    model = finished("CoOp")
    done = command(predict, model, bad[0], good, *bad[1:], "--json")
    assert done.status == 1 and [row["image"] for row in json.loads(done.printed)] == [str(good)]
    for line, file in zip(done.errors, bad, strict=True):
        assert line.startswith("skipped: ") and str(file) in line
        assert str(file) in command(predict, model, file, "--json").error
    done = command(predict, model, *bad, "--json")
    assert (done.status, len(done.errors)) == (2, 5)
    assert "none of the 4 images could be read" in done.errors[-1]


PROGRAMS = {"predict": predict, "inspect": inspect_command, "export": export}
WRONG = {  # the end of the line that each gives has these words
    "predict {photos}": "{photos} is not a model: give a run's output folder",
    "predict {run} {photos} --csv out.csv": "to write the answers there: --to out.csv",
    "predict {run} {run}/results.json": "results.json' is damaged or not a JPEG",
    "predict {run} {photos} --to {out}.txt": "does not end in .csv, .json, .jsonl, .parquet",
    "predict {run} {photos} --to {photos}": "name a file, or write it as {photos}/",
    "predict {run} {photos} --to {out}/a.csv": "is in a folder that does not exist",
    "predict {run} {photos} --shard 1/2": "--shard is for answers in a folder: end --to with /",
    "predict {run} {photos} --to {out}/ --csv": "gets Parquet, not csv",
    "predict {run} {photos} --format parquet": "name a file: --to FILE.parquet",
    "predict {run} {text} --to {out}.csv": "{text}' is damaged",
    "predict {run} {photos} --classes {long} cat": "77 positions",
    "predict {run} {photos} --classes cat": "has the probability 100%: give two or more",
    "predict --classes cat {photos}": "no model and no images are given: name them before --classes",
    "predict --backbone small {photos}": "--classes",
    "predict {run} {photos} --load-epoch 7": "(epochs there: 1)",
    "predict {tested} {photos}": "give the output folder of a training run",
    "predict {checkpoint} {photos} --config-file {maple} --template "
    "a_{{}}.": "MaPLe does not read it",
    "predict {huge} {photos} --json": "not finite: use the checkpoint of another epoch",
    "inspect {run} --output {out} --images {text}": "could be read",
    "inspect {run} --output {photos}": "{photos} is not empty",
}


@pytest.fixture
def changed(finished, tmp_path_factory):
    """`changed(change)`: a copy of a run of CoOp with another checkpoint."""

    def changed(change):
        folder = shutil.copytree(finished("CoOp"), tmp_path_factory.mktemp("changed") / "run")
        file = folder / "prompt_learner/model.pth.tar-1"
        checkpoint = torch.load(file, weights_only=True)
        change(checkpoint)
        torch.save(checkpoint, file)
        return folder

    return changed


@pytest.mark.parametrize("line", WRONG)
def test_wrong_arguments_end_in_one_line_and_leave_nothing(
    line, finished, changed, command, photos, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # without output/
    run = finished("MaPLe")
    places = {
        "photos": photos,
        "run": run,
        "tested": finished("MaPLe", "new", tests=run),
        "out": tmp_path / "out",
        "checkpoint": run / "MultiModalPromptLearner",
        "long": "long " * 80,
        "text": tmp_path / "text.jpg",
        "huge": changed(lambda checkpoint: checkpoint["state_dict"]["ctx"].fill_(1e38)),
        "maple": ROOT / "configs/trainers/MaPLe/small.yaml",
    }
    places["text"].write_text("no image")
    program, *arguments = (item.replace("_", " ").format(**places) for item in line.split())
    done = command(PROGRAMS[program], *arguments)
    assert done.status == 2 and done.printed == "", done
    assert sum("error: " in each for each in done.errors) == 1
    assert WRONG[line].format(**places) in done.errors[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["text.jpg"]


# Names of others


def test_image_names_and_class_names_are_only_shown(finished, command, photos, tmp_path):
    """They reached the terminal raw; a spreadsheet ran them as formulas."""
    image = tmp_path / "photos/a\x1b]0;title\x07\nb.png"
    image.parent.mkdir()
    shutil.copy(photos / "b.png", image)
    shown = str(image).replace("\x1b", r"\x1b").replace("\x07", r"\x07").replace("\n", r"\n")
    names = ["--classes", "=1+1", "@a", "--topk", 3]  # of a model of three classes
    done = command.works(predict, finished("CoOp"), image.parent, *names)
    assert done.printed.startswith(f"{shown}  CoOp  ") and done.printed.count("\n") == 1
    printed = command(predict, finished("CoOp"), image, *names, "--csv").printed
    header, row = csv.reader(printed.splitlines())
    assert header == ["path", "model", "answer", "probability", "answer_2", "probability_2"]
    assert row[0] == shown and {row[2], row[4]} == {"'=1+1", "'@a"}


def test_a_file_of_class_names_has_one_on_each_line(tmp_path):
    file = tmp_path / "names.txt"
    file.write_bytes("red\u2028fox\r\n\nblue tit\rcrow\x0cbird\n".encode())
    given = SimpleNamespace(classes_file=file, classes=[])
    assert given_class_names(given) == ["red fox", "blue tit", "crow bird"]
