"""Predicting: runs and published checkpoints give the numbers of a run's test, and bad input ends in one line."""

import csv
import io
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from dassl.utils import load_checkpoint, save_checkpoint
from drawn import METHODS
from learned import NAMES, OPTIONS, images_of, own_test, rows_of
from marks import thorough_but
from PIL import Image

from clip import load_backbone, tokenize
from common.start import ROOT
from inference import export, images, predict
from inference.classifier import PromptedClassifier
from inference.inspection import command as inspect_command
from inference.models import open_models

pytestmark = pytest.mark.slow

# The same numbers as a run's test


QUICK = "MPL", "CoCoOp", "VPT"


@pytest.mark.parametrize("method", thorough_but(QUICK, METHODS))
def test_logits_are_those_of_the_runs_test(method, finished, command):
    folder = finished(method)
    files, expected, names = own_test(folder, "base")
    new_files, new_expected, new_names = own_test(folder, "new")
    (model,) = open_models([folder], OPTIONS)
    assert model.classifier.class_names == [name.replace("_", " ") for name in names]
    torch.testing.assert_close(model.classifier.logits(files), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.classifier.logits(new_files, new_names), new_expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.classifier.logits(files), expected, rtol=0, atol=1e-5)  # and back


@pytest.mark.parametrize(("classes", "labels", "options"), [("base", range(3), []), ("new", range(3, 6), NAMES[3:])])
def test_accuracy_equals_the_test_of_the_run(classes, labels, options, finished, command, eurosat):
    run, names = finished("MaPLe"), images_of(eurosat, labels)
    tested = run if classes == "base" else finished("MaPLe", "new", tests=run)
    rows = rows_of(command, run, "--topk", 1, *names, *(["--classes", *options] if options else []))
    correct = [row["top"][0]["class"] == names[row["image"]].replace("_", " ") for row in rows]
    results = json.loads((tested / "results.json").read_text())
    assert (len(rows), 100 * sum(correct) / len(rows)) == (results["n_test"], results["accuracy"])


# Forms of output and bad input


def test_table_csv_and_json_have_the_same_figures(finished, command, photos):
    rows = rows_of(command, finished("CoOp"), photos, "--topk", 2)
    files = [str(photos / name) for name in ("a.jpg", "b.png", "below/c.PNG", "d.webp", "e f.bmp")]
    assert [row["image"] for row in rows] == files
    assert all(len(row["top"]) == 2 and row["model"] == "CoOp" for row in rows)
    assert all(row["top"][0]["probability"] >= row["top"][1]["probability"] for row in rows)
    tops = [(row["image"], rank, top) for row in rows for rank, top in enumerate(row["top"], start=1)]
    printed = command(predict, finished("CoOp"), photos, "--topk", 2, "--csv").printed
    assert list(csv.DictReader(io.StringIO(printed))) == [
        {"image": image, "model": "CoOp", "rank": str(rank), **{key: str(value) for key, value in top.items()}}
        for image, rank, top in tops
    ]
    printed = command(predict, finished("CoOp"), photos, "--topk", 2).printed.splitlines()
    for image, rank, top in tops:
        line = next(line for line in printed if line.startswith(image))
        assert line.split(f"{top['class']:<11} {100 * top['probability']:5.1f} %")[0].count("%") == rank - 1


def test_several_models_stand_side_by_side_and_zero_shot_takes_their_names(finished, command, photos):
    models = [finished("CoOp"), finished("VPT"), finished("ZeroshotCLIP")]
    rows = rows_of(command, *models, photos / "a.jpg", photos / "b.png", "--topk", 9)
    assert [row["model"] for row in rows] == ["CoOp", "VPT", "ZeroshotCLIP"] * 2
    assert {len(row["top"]) for row in rows} == {3}
    alone = rows_of(command, models[2], photos / "a.jpg", "--classes", "red", "green field", "blue lake", "--topk", 9)
    for row in (*alone, rows[2]):  # both have the dataset's sentence, not that of a backbone alone
        for top in row["top"]:
            top["probability"] = pytest.approx(top["probability"], abs=1e-6)
    assert alone == rows[2:3]
    rows = rows_of(command, models[0], models[0], photos / "a.jpg")
    assert [row["model"] for row in rows] == [f"CoOp {models[0]}"] * 2


def test_zero_shot_needs_a_backbone_and_names_only(command, photos, deep):
    names = ["a cat", "a dog"]
    rows = rows_of(command, photos / "a.jpg", "--backbone", deep, "--classes", *names, "--template", "{} in winter")
    clip = load_backbone(str(deep))
    image = PromptedClassifier.zero_shot(str(deep), names).transform(Image.open(photos / "a.jpg").convert("RGB"))
    logits, _ = clip(image[None], tokenize(["a cat in winter", "a dog in winter"]))
    expected = dict(zip(names, logits[0].softmax(dim=0).tolist(), strict=True))
    assert {top["class"]: top["probability"] for top in rows[0]["top"]} == pytest.approx(expected, abs=1e-5)


def test_class_names_from_a_file(finished, command, photos, tmp_path):
    file = tmp_path / "names.txt"
    file.write_bytes("\ufeffa red lake\r\n\r\n  caf\u00e9 \n".encode())
    rows = rows_of(command, finished("CoOp"), photos / "a.jpg", "--classes-file", file)
    assert {top["class"] for top in rows[0]["top"]} == {"a red lake", "café"}


def test_unreadable_images_are_reported_and_skipped(finished, command, tmp_path):
    good, *bad = (tmp_path / name for name in ("good.png", "text.jpg", "short.png", "pipe.png", "missing.png"))
    Image.new("RGB", (32, 32)).save(good)
    bad[0].write_text("no image")
    bad[1].write_bytes(good.read_bytes()[:60])
    os.mkfifo(bad[2])
    done = command(predict, finished("CoOp"), bad[0], good, *bad[1:], "--json")
    assert done.status == 1 and [row["image"] for row in json.loads(done.printed)] == [str(good)]
    assert all(line.startswith("skipped: ") and str(file) in line for line, file in zip(done.errors, bad, strict=True))
    done = command(predict, finished("CoOp"), *bad, "--json")
    assert (done.status, len(done.errors)) == (2, 5) and "none of the 4 images could be read" in done.errors[-1]
    for file in bad:
        done = command(predict, finished("CoOp"), file, "--json")
        assert (done.status, len(done.errors)) == (2, 1)
        assert done.errors[0].startswith("error: ") and str(file) in done.errors[0]


LONG = "a very " * 80 + "long name"
WRONG = {
    "no model": (["{photos}"], "{photos} is not a model"),
    "nothing there": (
        ["/nowhere", "{photos}"],
        "no model at /nowhere: give the output folder of a run (there is none ",
    ),
    "no image": (["{run}"], "no images are given"),
    "a name of many tokens": (["{run}", "{photos}", "--classes", LONG], "tokens, the text tower has 77 positions"),
    "a name given twice": (["{run}", "{photos}", "--classes", "red", "blue", " red"], "'red' is given 2 times"),
    "zero-shot without names": (["--backbone", "small", "{photos}"], "zero-shot CLIP has no class names"),
    "an unknown backbone": (["--backbone", "smal", "{photos}", "--classes", "a", "b"], "unknown backbone 'smal'"),
    "an empty file of names": (["{run}", "{photos}", "--classes-file", "/dev/null"], "/dev/null"),
    "an epoch that is not there": (["{run}", "{photos}", "--load-epoch", "7"], "(epochs there: 1)"),
    "a test's folder": (["{tested}", "{photos}"], "give the output folder of a training run"),
    "a device that is not there": (["{run}", "{photos}", "--device", "tpu"], "no device 'tpu'"),
    "a sentence for learned prompts": (["{run}", "{photos}", "--template", "a {}."], "--template has no use here"),
    "a sentence without a class": (
        ["--backbone", "small", "{photos}", "--classes", "a", "b", "--template", "a {x}."],
        "the template 'a {{x}}.' does not have {{}} in the place of the class name",
    ),
    "a YAML file for a run": (["{run}", "{photos}", "--config-file", "/nowhere"], "--config-file has no use here"),
    "a checkpoint without settings": (
        ["{checkpoint}", "{photos}"],
        "name the YAML file of its method by --config-file",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_end_in_one_line(name, finished, command, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # without output/
    run = finished("MaPLe")
    tested = finished("MaPLe", "new", tests=run)
    places = {"photos": photos, "run": run, "checkpoint": run / "MultiModalPromptLearner", "tested": tested}
    arguments, reason = WRONG[name]
    done = command(predict, *(item.format(**places) if item[1:-1] in places else item for item in arguments))
    assert (done.status, done.printed, len(done.errors)) == (2, "", 1), done.errors
    assert reason.format(**places) in done.errors[0]


def test_a_missing_model_names_the_newest_runs(command, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (line,) = command(predict, "output/mpl", photos).errors
    assert line.endswith("give the output folder of a run (there is none with learned prompts below output)")
    for age, name in enumerate(("tested", "newest", "newer", "new", "old")):
        folder = tmp_path / "output/base2new" / name
        (folder / "prompt_learner").mkdir(parents=True)
        (folder / "config.yaml").write_text("")
        os.utime(folder / "config.yaml", (1e9 - age, 1e9 - age))
        if name != "tested":
            (folder / "prompt_learner/model.pth.tar-5").write_text("")
    runs = "output/base2new/newest, output/base2new/newer, output/base2new/new"
    for missing in ("output/mpl", "outputs/mpl"):
        (line,) = command(predict, missing, photos).errors
        assert line == f"error: no model at {missing}: the newest runs below output are {runs}"


def test_run_without_a_finished_training_is_refused(finished, command, photos, tmp_path):
    folder = shutil.copytree(finished("CoOp"), tmp_path / "run")
    (folder / "results.json").unlink()
    done = command(predict, folder, photos)
    assert (done.status, len(done.errors)) == (2, 1)
    assert "is not finished: it has no results.json" in done.errors[0] and "--load-epoch" in done.errors[0]
    assert len(rows_of(command, folder, photos, "--load-epoch", 1)) == 5
    (folder / "config.yaml").write_text("TRAINER: [")
    done = command(predict, folder, photos, "--load-epoch", 1)
    assert (done.status, len(done.errors)) == (2, 1)


def test_class_specific_contexts_take_no_other_names(finished, command, photos):
    folder = finished("CoOp", "base", "TRAINER.COOP.CSC", True, "TRAINER.COOP.CTX_INIT", "")
    assert len(rows_of(command, folder, photos)) == 5
    assert len(rows_of(command, folder, photos, "--classes", "red", "green field", "blue_lake")) == 5
    for names in (["a", "b"], ["a", "b", "c"]):
        done = command(predict, folder, photos, "--classes", *names)
        assert (done.status, len(done.errors)) == (2, 1)
        assert "has values of its own for each class that it was learned on" in done.errors[0]


def test_other_class_names_leave_the_backbone_where_it_is(finished, photos, monkeypatch):
    """Other threads compute with it meanwhile."""
    ((_, classifier),) = open_models([finished("TCP")], OPTIONS)
    lists = (["a cat", "a dog"], ["an oak", "an elm", "a fir"], None)
    expected = [classifier.logits(photos / "a.jpg", names) for names in lists]
    classifier._other.cache_clear()
    monkeypatch.setattr(type(classifier.clip), "_apply", lambda *arguments, **options: pytest.fail("it is moved"))
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda names: classifier.logits(photos / "a.jpg", names), lists * 4))
    assert all(torch.equal(*pair) for pair in zip(found, expected * 4, strict=True))
    assert {model.clip for model in map(classifier.model_for, lists)} == {classifier.clip}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is where prompts are built")
def test_prompts_are_built_where_the_backbone_is(finished):
    ((_, classifier),) = open_models([finished("VPT")], OPTIONS)
    classifier.clip.to("meta")
    classifier.device, classifier.checkpoint = torch.device("meta"), None
    assert {tensor.device.type for tensor in classifier.model_for(["a", "b"]).state_dict().values()} == {"meta"}


@pytest.fixture
def huge(finished, tmp_path):
    """A run whose prompts are finite, and give logits that are not."""
    folder = shutil.copytree(finished("CoOp"), tmp_path / "huge")
    file = folder / "prompt_learner/model.pth.tar-1"
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["state_dict"]["ctx"].fill_(1e38)
    torch.save(checkpoint, file)
    return folder


@pytest.mark.parametrize(
    ("module", "options"),
    [(predict, "{photos} --json"), (export, "--to {out}"), (inspect_command, "--output {out}")],
)
def test_non_finite_logits_end_in_one_line(module, options, huge, command, photos, tmp_path):
    arguments = options.format(photos=photos / "a.jpg", out=tmp_path / "out").split()
    done = command(module, huge, *arguments)
    assert (done.status, done.printed, len(done.errors)) == (2, "", 1), done
    assert f"{huge} gives logits that are not finite: use the checkpoint of another epoch" in done.errors[0]
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_the_former_place_of_the_classifier_says_where_it_is_now():
    with pytest.warns(DeprecationWarning, match="is now inference.classifier") as warned:
        from trainers.classifier import PromptedClassifier as former
    assert former is PromptedClassifier and warned[0].filename == __file__


def test_many_class_names_are_announced(finished, command, photos, monkeypatch):
    """50,000 names gave no answer and no word for a minute."""
    monkeypatch.setattr(images, "MANY", 3)
    for names, said in (
        ("123", []),
        ("1234", ["CoOp: computing the text features of 4 class names, which takes a while"]),
    ):
        assert command(predict, finished("CoOp"), photos / "a.jpg", "--classes", *names).errors == said


# Names of others


def test_image_names_and_class_names_are_only_shown(finished, command, photos, tmp_path):
    """They reached the terminal raw; a spreadsheet ran them as formulas."""
    image = tmp_path / "photos/a\x1b]0;title\x07\nb.png"
    image.parent.mkdir()
    shutil.copy(photos / "b.png", image)
    shown = str(image).replace("\x1b", r"\x1b").replace("\x07", r"\x07").replace("\n", r"\n")
    names = ["--classes", "=1+1", "@a", "--topk", 2]
    done = command(predict, finished("CoOp"), image.parent, *names)
    assert done.status == 0 and done.printed.startswith(f"{shown}  CoOp  ") and done.printed.count("\n") == 1
    rows = list(csv.reader(command(predict, finished("CoOp"), image, *names, "--csv").printed.splitlines()))
    assert [row[0] for row in rows[1:]] == [shown] * 2 and {row[3] for row in rows[1:]} == {"'=1+1", "'@a"}


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["red", "", "blue"], "a class name is empty"),
        (["red", "a\nb", "blue"], r"the class name 'a\nb' has control characters"),
        (["red", "a\x1b[2J", "blue"], r"the class name 'a\x1b[2J' has control characters"),
        (["missile", "missile", "blue"], ""),
    ],
)
def test_class_names_of_a_checkpoint_are_checked(names, reason, finished, command, photos, tmp_path):
    folder = shutil.copytree(finished("CoOp"), tmp_path / "run")
    file = folder / "prompt_learner/model.pth.tar-1"
    checkpoint = load_checkpoint(str(file))
    checkpoint["metadata"]["class_names"] = names
    save_checkpoint(checkpoint, str(file.parent))
    done = command(predict, folder, photos)
    assert (done.status, len(done.errors)) == ((2, 1) if reason else (0, 0))
    assert not reason or (str(folder) in done.errors[0] and reason in done.errors[0])


# Published checkpoints


def test_published_checkpoint_needs_its_yaml_and_class_names(finished, command, photos, deep, tmp_path):
    ours = torch.load(finished("MaPLe") / "MultiModalPromptLearner/model.pth.tar-1", weights_only=True)
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
    expected = rows_of(command, finished("MaPLe"), photos)
    for model in (tmp_path / "published", file.parent, file):
        done = command(predict, model, photos, *options, "--json")
        assert (done.status, json.loads(done.printed)) == (0, expected)
        (line,) = done.errors
        unknown = "does not say on which weights its prompts were learned: check that they are those of"
        assert line == f"{model} {unknown} {deep}"
    done = command(predict, file, photos, *options[:4])
    assert (done.status, len(done.errors)) == (2, 1) and "no class names: give them by --classes" in done.errors[0]
    done = command(predict, file, photos, *options, "--trainer", "CoOp")
    assert (done.status, len(done.errors)) == (2, 1) and "is a checkpoint of MaPLe, not of CoOp" in done.errors[0]
