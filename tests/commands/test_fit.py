"""tools/fit.py: from a folder of images to a classifier with an honest estimate."""

import shutil
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from marks import of_json, to_json
from PIL import Image

from common.files import checksum
from common.version import source
from fit import choose, decision, features, plan
from fit import command as fit
from fit import fit as story
from fit import trained as towers_module
from fit.estimator import Classifier
from fit.features import Features
from fit.heads import Heads
from fit.photos import Photos
from fit.read_images import Photo
from fit.trained import TRAINED, Towers
from inference import predict
from inference.calibrated import sha256_of_images
from inference.classifier import PromptedClassifier
from inference.load import load, open_models
from inference.options import LoadOptions

QUICK = ["--methods", "GDA", "VisionProbe"]


@pytest.fixture
def photos(class_folders):
    return class_folders


def without_date(facts):
    """The facts of a model, whose date is that of its end."""
    assert datetime.fromisoformat(facts.pop("date"))
    return facts


def read(folder):
    return of_json(folder / "fit.json")


def test_a_folder_becomes_a_model_and_more_images_cost_only_what_is_new(
    command, fitting, photos, tiny, tmp_path, monkeypatch, random_seed
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # without features of other tests
    encoded = []
    original = Features.encode
    monkeypatch.setattr(
        Features, "encode", lambda self, x: encoded.append(len(x)) or original(self, x)
    )
    names = sorted(folder.name for folder in photos.iterdir())
    line = photos, "--seed", random_seed, "--max-error", 95, *QUICK
    done = fitting.works(*line)
    first = read(tmp_path / "model")
    assert sum(encoded) == len(first["images"]) == 48
    assert first["finished"] and first["estimate"]["low"] < first["estimate"]["high"]
    classifier = load(tmp_path / "model", backbone=str(tiny))
    assert classifier.class_names == [name.replace("_", " ") for name in names]
    assert classifier.calibration.images == 48
    held = sha256_of_images((checksum(file), file.parent.name) for file in photos.glob("*/*"))
    assert classifier.calibration.sha256 == held  # as tools/calibrate.py says it
    made = first["made"]
    threshold = classifier.calibration.threshold
    promised = f"{threshold.answered} of 48 held-out images get an answer, {threshold.wrong} of"
    assert all(
        promised in text for text in ((tmp_path / "model/report.html").read_text(), done.printed)
    )
    assert made == source() | {
        "seed": random_seed,
        "device": classifier.device.type,
        "date": made["date"],
    }
    assert classifier.description.training.items() >= made.items()
    before = first["estimate"]["cross_validated"]
    # Four folds learn
    gain = choose.gain(before, first["zero_shot"], 8 * 4 / 5, np.log2(5 / 4))
    assert first["estimate"]["accuracy"] == pytest.approx(before + gain)
    image = next((photos / names[0]).iterdir())
    assert classifier.probabilities([image]).sum() == pytest.approx(1)
    command.works(predict, tmp_path / "model", image, "--backbone", tiny, "--unknown")
    (opened,) = open_models([tmp_path / "model"], LoadOptions(backbone=str(tiny)))
    assert opened.name == "model"

    encoded.clear()
    assert "Already done" in fitting(*line).printed and not encoded
    Image.new("RGB", (40, 40), (9, 200, 9)).save(photos / names[0] / "new.png")
    fitting.works(*line)
    assert sum(encoded) == 1 and len(read(tmp_path / "model")["images"]) == 49


def test_a_model_of_other_images_is_replaced_on_request_alone(
    fitting, photos, tmp_path, monkeypatch
):
    others = tmp_path / "others"
    for number, name in enumerate(sorted(folder.name for folder in photos.iterdir())):
        shutil.copytree(photos / name, others / f"other {name}")
        for seed, file in enumerate(sorted((others / f"other {name}").iterdir())):
            pixels = np.random.default_rng([number, seed]).integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(file)
    fitting.works(photos, *QUICK)
    before = (tmp_path / "model/prompts.safetensors").read_bytes()
    error = fitting(others, *QUICK).error
    assert f"has a model of other images than {others}" in error and "--replace" in error
    assert (tmp_path / "model/prompts.safetensors").read_bytes() == before
    with monkeypatch.context() as killing, pytest.raises(ZeroDivisionError):
        killing.setattr(story, "decide_among", lambda *arguments: 1 / 0)
        fitting.main(others, *QUICK, "--replace")
    assert "has a model of other images" in fitting(photos, *QUICK).error
    fitting.works(others, *QUICK)
    assert read(tmp_path / "model")["names"] == sorted(folder.name for folder in others.iterdir())


def test_the_report_promises_an_error_only_where_the_images_are_enough(fitting, photos, tmp_path):
    fitting.works(photos, *QUICK)
    page = (tmp_path / "model/report.html").read_text()
    assert "it says whether these images are enough to promise that" in page
    fitting.works(photos, "--max-error", 2, *QUICK)
    page = (tmp_path / "model/report.html").read_text()
    assert "cannot promise this error" in page and "of the answers are wrong" not in page


def test_a_link_in_the_folder_of_a_fit_is_not_copied(fitting, photos, tiny, tmp_path):
    fitting.works(photos, *QUICK)
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "model/notes.txt").symlink_to(tmp_path / "secret")
    (tmp_path / "model/labels.csv").unlink()
    (tmp_path / "model/labels.csv").symlink_to(tmp_path / "secret")
    Classifier.load(tmp_path / "model", backbone=str(tiny)).save(tmp_path / "copy")
    assert not {"notes.txt", "labels.csv"} & {file.name for file in (tmp_path / "copy").iterdir()}


@pytest.mark.parametrize("error", ["0.05", "5", "5%"])
def test_fit_says_how_clip_reads_joined_names_and_what_an_error_is(error, fitting, photos):
    (photos / "0").rename(photos / "AnnualCrop")
    done = fitting(photos, "--methods", "None", "--max-error", error)
    assert done.status == 2 and "at most 5% of the answers may be wrong" in done.printed
    assert "CLIP reads 'annualcrop'" in done.printed


def test_images_changed_during_the_start_of_fit_are_left_out_and_not_kept(
    fitting, photos, tmp_path, monkeypatch
):
    one, other, *_ = (min(folder.iterdir()) for folder in sorted(photos.iterdir()))

    def exchange():
        one.rename(tmp_path / "aside")
        other.rename(one)
        (tmp_path / "aside").rename(other)

    def exchanging(file, checksum=fit.checksum):
        found = checksum(file)
        if file == max(photos.glob("*/*")):  # the last one
            exchange()
        return found

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    with monkeypatch.context() as patched:
        patched.setattr(fit, "checksum", exchanging)
        printed = fitting(photos, *QUICK).printed
    assert all(f"Left out: {file} changed while fit ran" in printed for file in (one, other))
    assert len(read(tmp_path / "model")["images"]) == 46
    exchange()
    assert "Already done" not in fitting(photos, *QUICK).printed
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fitting.works(photos, *QUICK, to="fresh")
    kept, fresh = (read(tmp_path / name) for name in ("model", "fresh"))
    assert len(kept["images"]) == 48 and kept["images"] == fresh["images"]
    assert kept["estimate"] == fresh["estimate"] and kept["chosen"] == fresh["chosen"]


def test_a_deleted_or_changed_model_is_fitted_again(fitting, photos, tmp_path):
    tensors = tmp_path / "model/prompts.safetensors"
    config = tmp_path / "model/config.json"
    fitting.works(photos, *QUICK)
    before = tensors.read_bytes(), without_date(of_json(config)["training"])
    page = tmp_path / "model/report.html"
    damages = tensors.unlink, page.unlink, lambda: config.write_text(config.read_text() + " ")
    for damage in damages:
        damage()
        assert "is gone or was changed" in fitting(photos, *QUICK).printed
        assert (tensors.read_bytes(), without_date(of_json(config)["training"])) == before
    (tmp_path / "model/calibration.json").unlink()  # tools/calibrate.py replaces it
    assert "Already done" in fitting(photos, *QUICK).printed


def test_sets_of_an_older_version_are_refused_until_images_are_fitted_again(
    command, fitting, photos, tiny, tmp_path
):
    model = tmp_path / "model"
    answer = predict, model, next(photos.glob("*/*")), "--backbone", tiny
    fitting.works(photos, *QUICK)
    content = of_json(model / "calibration.json")
    del content["content_sha256"]
    content["sets"]["folds"] = [0] * len(content["sets"]["label_scores"])
    to_json(model / "calibration.json", content)
    error = command(*answer).error
    assert "its sets need the models of folds, which an older version wrote" in error
    kept = tmp_path / "elsewhere/kept.txt"
    kept.parent.mkdir()
    kept.touch()
    (model / "folds").mkdir()
    (model / "folds/0").symlink_to(kept.parent)
    fitting.works(photos, "--methods", "GDA")
    command.works(*answer)
    assert not (model / "folds").exists() and kept.exists()


def towers_of(photos, backbone):
    """The images below class folders, and what learns from them."""
    files = sorted(map(str, photos.glob("*/*")))
    pictures = [Photo(file, file.split("/")[-2], sha256=checksum(Path(file))) for file in files]
    names = sorted({picture.label for picture in pictures})
    heads = Heads(PromptedClassifier.zero_shot(str(backbone), names))
    return files, heads, Towers(heads, Photos(pictures, names, {}, []))


def test_a_killed_fit_resumes_to_the_same_result(
    fitting, photos, tmp_path, monkeypatch, random_seed
):
    monkeypatch.setattr(features, "PART", 8)  # images that are kept together
    line = photos, "--methods", "GDA"
    # Until the interrupt
    steps = []
    left = [0]
    originals = {Features: Features.encode, Heads: Heads.answers}

    def step(kind, *arguments):
        steps.append(kind)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return originals[kind](*arguments)

    for kind, name in ((Features, "encode"), (Heads, "answers")):
        monkeypatch.setattr(kind, name, lambda *arguments, kind=kind: step(kind, *arguments))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fitting.works(*line, to="whole")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    steps.clear()
    fitting.works(*line, to="whole again")
    moments = np.random.default_rng(random_seed).integers(2, len(steps), 3)
    for number, left[0] in enumerate(moments):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache{number}"))
        steps.clear()
        assert fitting(*line, to=f"{number}").status == 130
        fitting.works(*line, to=f"{number}")
        assert steps.count(Features) <= 6 + 1  # six parts, one of them twice
        whole, resumed = (read(tmp_path / name) for name in ("whole", f"{number}"))
        for record in (whole, resumed):
            assert record.pop("model").keys() == {"config.json", "prompts.safetensors"}
            without_date(record["made"])
            for row in record["candidates"]:
                row.pop("seconds")
        assert whole == resumed


@pytest.fixture
def few_steps(monkeypatch):
    """Trained methods learn for a step or two."""
    original = Towers.settings

    def settings(self, name):
        cfg = original(self, name)
        cfg.OPTIM.MAX_EPOCH = 1
        for section in cfg.TRAINER.values():
            if "N_ITERS" in section:
                section.N_ITERS = 1
        return cfg

    monkeypatch.setattr(Towers, "settings", settings)


def test_a_trained_method_is_exported_as_it_answers(photos, deep, few_steps):
    files, heads, towers = towers_of(photos, deep)
    places = np.arange(0, len(files), 3)
    zero_shot = heads.zero_shot.logits(files[:4])
    for candidate in TRAINED:
        method = towers.fit(candidate, places)
        found = heads.exported(candidate.method, {}, method).logits(files[:4])
        np.testing.assert_allclose(found, towers.answers(method, np.arange(4)), atol=1e-3)
        assert not torch.allclose(found, zero_shot, atol=1e-6), candidate.method
        assert 0 < towers.seconds(candidate, np.arange(len(files)) % 2) < 600


def test_trained_methods_and_sentences_are_candidates(
    fitting, photos, tmp_path, monkeypatch, few_steps
):
    sentences = tmp_path / "sentences.json"
    to_json(sentences, {"0": ["a {} thing", "fire"]})
    fits = []
    original = Towers.fit

    def fit_or_stop(self, *arguments):
        fits.append(arguments)
        if len(fits) == 3:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(Towers, "fit", fit_or_stop)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    heads = photos, "--methods", "KgCoOp", "--device", "cpu", "--sentences", sentences
    line = *heads, "--minutes", 60
    assert fitting(*line).status == 130
    fitting.works(*line)
    record = read(tmp_path / "model")
    names = [row["name"].split()[0] for row in record["candidates"] if "accuracy" in row]
    assert names == ["ZeroshotCLIP", "CuPL", "KgCoOp"]
    assert len(fits) == 1 + 5 + (record["chosen"][0]["method"] == "KgCoOp")  # two folds were kept
    described = of_json(tmp_path / "model/config.json")
    assert described["sentences"] or described["method"] == "ZeroshotCLIP"
    fitting.works(*heads, to="quick")
    assert "KgCoOp" not in str(read(tmp_path / "quick")["candidates"])
    monkeypatch.setattr(towers_module, "time", SimpleNamespace(monotonic=lambda: np.inf))
    fitting.works(*line, to="late")
    (late,) = (row for row in read(tmp_path / "late")["candidates"] if row["name"] == "KgCoOp")
    assert late["fault"] == "no time is left: raise --minutes"


def test_slow_heads_are_left_out_also_after_a_kill(fitting, photos, tmp_path, monkeypatch):
    """Each look at the clock is a minute later. The chosen head is then trained without a limit."""
    monkeypatch.setattr(plan, "SETTLED", 0)
    now = [0.0]

    def later():
        now[0] += 60
        return now[0]

    line = photos, "--methods", "GDA", "ZSLP", "--minutes", 60
    with monkeypatch.context() as patch:
        patch.setattr(plan, "time", SimpleNamespace(monotonic=later))
        patch.setattr(decision, "time", SimpleNamespace(monotonic=lambda: 0.0))
        patch.setattr(decision, "curve", lambda *arguments: exec("raise KeyboardInterrupt"))
        assert fitting(*line).status == 130
    written = read(tmp_path / "model")["plan"]["too_long"]
    assert "raise --minutes" in written["ZSLP LR 0.3"]
    fitting.works(*line)
    faults = {
        row["name"]: row["fault"]
        for row in read(tmp_path / "model")["candidates"]
        if "fault" in row
    }
    assert faults["ZSLP LR 0.3"].startswith(written["ZSLP LR 0.3"].split(":")[0])
