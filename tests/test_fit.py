"""tools/fit.py: from a folder of images to a classifier with an honest estimate."""

import json
import os
import shutil
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dassl.utils import ChangedImageError
from hostile import damaged
from hypothesis import given, settings
from marks import one_line
from PIL import Image

from common.errors import UsageError
from common.files import checksum
from common.version import source
from datasets import folders
from datasets.preparing import own_images
from fit import choice, clock, decision, features, story
from fit import command as fit
from fit import towers as towers_module
from fit.features import Features
from fit.heads import Heads
from fit.images import Photo, find
from fit.photos import Photos
from fit.towers import TRAINED, Towers
from inference import predict
from inference.calibrated import sha256_of_images
from inference.classifier import PromptedClassifier
from inference.images import find_images

QUICK = ["--methods", "GDA", "SSText"]


@pytest.fixture
def photos(eurosat, tmp_path):
    """Class folders with 8 images each."""
    for folder in (eurosat / "eurosat/2750").iterdir():
        for file in sorted(folder.iterdir())[:8]:
            target = tmp_path / "photos" / folder.name / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    return tmp_path / "photos"


def without_date(facts):
    """The facts of a model, whose date is that of its end."""
    assert datetime.fromisoformat(facts.pop("date"))
    return facts


def read(folder):
    return json.loads((folder / "fit.json").read_text())


def test_a_folder_becomes_a_model_and_more_images_cost_only_what_is_new(
    command, photos, tiny, tmp_path, monkeypatch, random_seed
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # without features of other tests
    encoded = []
    original = Features.encode
    monkeypatch.setattr(
        Features, "encode", lambda self, x: encoded.append(len(x)) or original(self, x)
    )
    names = sorted(folder.name for folder in photos.iterdir())
    line = [
        photos,
        "--to",
        tmp_path / "model",
        "--backbone",
        tiny,
        "--seed",
        random_seed,
        "--max-error",
        95,
        *QUICK,
    ]
    assert command(fit, *line).status == 0
    first = read(tmp_path / "model")
    assert sum(encoded) == 48
    assert (
        first["finished"]
        and len(first["images"]) == 48
        and first["estimate"]["low"] < first["estimate"]["high"]
    )
    classifier = PromptedClassifier.from_pretrained(tmp_path / "model", str(tiny))
    assert classifier.class_names == [name.replace("_", " ") for name in names]
    assert classifier.calibration.images == 48
    held = sha256_of_images((checksum(file), file.parent.name) for file in photos.glob("*/*"))
    assert classifier.calibration.sha256 == held  # as tools/calibrate.py says it
    made = {
        **source(),
        "seed": random_seed,
        "device": classifier.device.type,
        "date": first["made"]["date"],
    }
    assert first["made"] == made and classifier.description.training.items() >= made.items()
    before = first["estimate"]["cross_validated"]
    # Four folds learn
    gain = choice.gain(before, first["zero_shot"], 8 * 4 / 5, np.log2(5 / 4))
    assert first["estimate"]["accuracy"] == pytest.approx(before + gain)
    image = next((photos / names[0]).iterdir())
    assert classifier.probabilities([image]).sum() == pytest.approx(1)
    assert command(predict, tmp_path / "model", image, "--backbone", tiny, "--unknown").status == 0

    encoded.clear()
    assert "Already done" in command(fit, *line).printed and not encoded
    Image.new("RGB", (40, 40), (9, 200, 9)).save(photos / names[0] / "new.png")
    assert command(fit, *line).status == 0
    assert sum(encoded) == 1 and len(read(tmp_path / "model")["images"]) == 49


@pytest.mark.parametrize("error", ["0.05", "5", "5%"])
def test_fit_says_how_clip_reads_joined_names_and_what_an_error_is(
    error, command, photos, tiny, tmp_path
):
    (photos / "0").rename(photos / "AnnualCrop")
    line = [
        photos,
        "--to",
        tmp_path / "model",
        "--backbone",
        tiny,
        "--methods",
        "None",
        "--max-error",
        error,
    ]
    done = command(fit, *line)
    assert (
        done.status == 2 and "--max-error: at most 5% of the answers may be wrong" in done.printed
    )
    assert (
        "CLIP reads 'annualcrop': names like 'Annual Crop' may give better results\n"
        in done.printed
    )


def test_images_that_change_while_fit_starts_are_left_out_and_not_kept(
    command, photos, tiny, tmp_path, monkeypatch
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

    line = [photos, "--to", tmp_path / "model", "--backbone", tiny, *QUICK]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    with monkeypatch.context() as patched:
        patched.setattr(fit, "checksum", exchanging)
        printed = command(fit, *line).printed
    assert all(f"Left out: {file} changed while fit ran" in printed for file in (one, other))
    assert len(read(tmp_path / "model")["images"]) == 46
    exchange()
    assert "Already done" not in command(fit, *line).printed
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert command(fit, *line[:2], tmp_path / "fresh", *line[3:]).status == 0
    kept, fresh = (read(tmp_path / name) for name in ("model", "fresh"))
    assert len(kept["images"]) == 48 and kept["images"] == fresh["images"]
    assert kept["estimate"] == fresh["estimate"] and kept["chosen"] == fresh["chosen"]


@pytest.mark.parametrize("file", ["prompts.safetensors", "config.json"])
def test_a_model_that_is_gone_or_changed_is_fitted_again(command, photos, tiny, tmp_path, file):
    line = [photos, "--to", tmp_path / "model", "--backbone", tiny, *QUICK]
    assert command(fit, *line).status == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    if file == "config.json":
        (tmp_path / "model" / file).write_bytes(before[file].replace(b"GDA", b"gda") + b" ")
    else:
        (tmp_path / "model" / file).unlink()
    assert "is gone or was changed" in command(fit, *line).printed
    again = (tmp_path / "model" / file).read_bytes()
    if file == "config.json":
        again, before[file] = (
            without_date(json.loads(content)["training"]) for content in (again, before[file])
        )
    assert again == before[file]
    (tmp_path / "model/calibration.json").unlink()  # tools/calibrate.py replaces it
    assert "Already done" in command(fit, *line).printed


def test_another_decoder_has_features_of_its_own(tiny, monkeypatch):
    zero_shot = PromptedClassifier.zero_shot(str(tiny), ["red", "green"])
    before = Features(zero_shot, zero_shot.model_for()).facts
    assert Features(zero_shot, zero_shot.model_for()).facts == before
    monkeypatch.setattr(features, "decoders", lambda: {"pillow": "another"})
    assert Features(zero_shot, zero_shot.model_for()).facts != before


def test_what_a_folder_holds_and_is_not_read_is_named(photos, tmp_path, capsys, monkeypatch):
    read = tuple(ending for ending in folders.IMG_EXTENSIONS if ending not in folders.HEIC)
    monkeypatch.setattr(folders, "IMG_EXTENSIONS", read)
    first, second, third, *_ = sorted(photos.iterdir())
    count = len(list(photos.glob("*/*")))
    inside = third / "below"
    inside.mkdir()
    names = {"a.heic": "heic", "b.GIF": "", "c.jfif": "", "d.txt": "txt", "e": "without an ending"}
    for name in names:
        shutil.copy(min(first.iterdir()), inside / name)
    (photos / "raw").mkdir()
    for number in range(3):
        (photos / f"raw/{number}.cr2").touch()
    (photos / "none").mkdir()
    (tmp_path / "linked").mkdir()
    shutil.copy(min(first.iterdir()), tmp_path / "linked/f.jpg")
    (third / "link").symlink_to(tmp_path / "linked")
    (tmp_path / "linked/back").symlink_to(third)  # searched once
    found = find(photos)
    assert len(found) == count + 3 and {Path(photo.path).name for photo in found} >= {
        "b.GIF",
        "c.jfif",
        "f.jpg",
    }
    printed = capsys.readouterr().out
    assert (
        f"no images in {photos}/raw, but 3 .cr2\n" in printed
        and f"{photos}/none, but no files\n" in printed
    )
    assert (
        "files that are not images: 3 .cr2, 1 .heic, 1 .txt, 1 without an ending; `pip install"
        in printed
    )
    paths = {str(file) for file in find_images([photos])}
    assert paths == {photo.path for photo in found}

    parts = tmp_path / "parts"
    for part in ("train", "test"):
        shutil.copytree(
            photos, parts / part, ignore=shutil.ignore_patterns("raw", "none", "link", second.name)
        )
    shutil.move(photos, parts / "more")
    assert {photo.label for photo in find(parts)}.isdisjoint({"more", second.name})
    assert "Left out: 1 folders beside train, such as more" in capsys.readouterr().out
    own_images.check_folder(parts, read=False)
    assert "Left out: 1 folders beside train, such as more" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["Train", "TEST", "val", "validation"])
def test_a_part_is_never_a_class(name, photos):
    shutil.copytree(min(photos.iterdir()), photos / name / "red")
    for read in (find, own_images.check_folder):
        with pytest.raises(UsageError, match=f"has a folder {name} where class folders are"):
            read(photos)


def test_a_trained_candidate_never_reads_a_changed_image(photos, tiny):
    files = sorted(map(str, photos.glob("*/*")))
    pictures = [Photo(file, file.split("/")[-2]) for file in files]
    names = sorted({picture.label for picture in pictures})
    heads = Heads(PromptedClassifier.zero_shot(str(tiny), names))
    towers = Towers(
        heads, Photos(pictures, names, {}, []), {file: checksum(Path(file)) for file in files}
    )
    shutil.copy(files[-1], files[0])
    batches = towers.loader(towers.method(TRAINED[-1], 8), np.arange(8))
    for reading in (lambda: list(batches), lambda: list(towers.pixels(files[:2]))):
        with pytest.raises(ChangedImageError, match="changed after its checksum was read"):
            reading()


def test_a_killed_fit_goes_on_to_the_same_result(
    command, photos, tiny, tmp_path, monkeypatch, random_seed
):
    monkeypatch.setattr(features, "PART", 8)  # images that are kept together
    line = [photos, "--backbone", tiny, "--methods", "GDA", "--to"]
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
    assert command(fit, *line, tmp_path / "whole").status == 0
    trainings = steps.count(Heads)
    steps.clear()
    assert command(fit, *line, tmp_path / "again").status == 0
    # GDA's three, ten folds: what was held out is kept
    assert steps.count(Heads) <= trainings - 3 * 10
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    steps.clear()
    assert command(fit, *line, tmp_path / "whole again").status == 0
    moments = np.random.default_rng(random_seed).integers(2, len(steps), 3)
    for number, left[0] in enumerate(moments):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache{number}"))
        steps.clear()
        assert command(fit, *line, tmp_path / f"{number}").status == 130
        assert command(fit, *line, tmp_path / f"{number}").status == 0
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
    files = sorted(map(str, photos.glob("*/*")))
    pictures = [Photo(file, file.split("/")[-2]) for file in files]
    names = sorted({picture.label for picture in pictures})
    heads = Heads(PromptedClassifier.zero_shot(str(deep), names))
    towers = Towers(heads, Photos(pictures, names, {}, []))
    places = np.arange(0, len(files), 3)
    zero_shot = heads.zero_shot.logits(files[:4])
    for candidate in TRAINED:
        method = towers.fit(candidate, places)
        found = heads.exported(candidate.method, {}, method).logits(files[:4])
        np.testing.assert_allclose(found, towers.answers(method, np.arange(4)), atol=1e-3)
        assert not torch.allclose(found, zero_shot, atol=1e-6), candidate.method
        assert 0 < towers.seconds(candidate, np.arange(len(files)) % 2) < 600


def test_trained_methods_and_sentences_are_candidates(
    command, photos, tiny, tmp_path, monkeypatch, few_steps
):
    sentences = tmp_path / "sentences.json"
    sentences.write_text(json.dumps({"0": ["a {} thing", "fire"]}))
    fits = []
    original = Towers.fit

    def fit_or_stop(self, *arguments):
        fits.append(arguments)
        if len(fits) == 3:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(Towers, "fit", fit_or_stop)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    line = [
        photos,
        "--backbone",
        tiny,
        "--methods",
        "KgCoOp",
        "TaskRes",
        "--minutes",
        60,
        "--device",
        "cpu",
    ]
    line += ["--sentences", sentences, "--to", tmp_path / "model"]
    assert command(fit, *line).status == 130
    assert command(fit, *line).status == 0
    record = read(tmp_path / "model")
    names = [row["name"].split()[0] for row in record["candidates"] if "accuracy" in row]
    assert names == ["ZeroshotCLIP", "CuPL", "TaskRes", "TaskRes", "KgCoOp"]
    assert len(fits) == 1 + 5 + (record["chosen"][0]["method"] == "KgCoOp")  # two folds were kept
    described = json.loads((tmp_path / "model/config.json").read_text())
    assert described["sentences"] or described["method"] == "ZeroshotCLIP"
    assert command(fit, *line[:-1], tmp_path / "quick", "--minutes", 0).status == 0
    assert "KgCoOp" not in str(read(tmp_path / "quick")["candidates"])
    monkeypatch.setattr(towers_module, "time", SimpleNamespace(monotonic=lambda: np.inf))
    assert command(fit, *line[:-1], tmp_path / "late").status == 0
    (late,) = (row for row in read(tmp_path / "late")["candidates"] if row["name"] == "KgCoOp")
    assert late["fault"] == "no time is left: raise --minutes"


def test_heads_that_take_too_long_are_left_out_also_after_a_kill(
    command, photos, tiny, tmp_path, monkeypatch
):
    """Each look at the clock is a minute later. The chosen head is then trained without a limit."""
    monkeypatch.setattr(clock, "SETTLED", 0)
    now = [0.0]

    def later():
        now[0] += 60
        return now[0]

    line = [
        photos,
        "--backbone",
        tiny,
        "--methods",
        "GDA",
        "CLAP",
        "--minutes",
        60,
        "--to",
        tmp_path / "model",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(clock, "time", SimpleNamespace(monotonic=later))
        for module in (story, decision):
            patch.setattr(module, "time", SimpleNamespace(monotonic=lambda: 0.0))
        patch.setattr(decision, "curve", lambda *arguments: exec("raise KeyboardInterrupt"))
        assert command(fit, *line).status == 130
    plan = read(tmp_path / "model")["plan"]["too_long"]
    assert "raise --minutes" in plan["CLAP LR 0.1"]
    assert command(fit, *line).status == 0
    faults = {
        row["name"]: row["fault"]
        for row in read(tmp_path / "model")["candidates"]
        if "fault" in row
    }
    assert faults["CLAP LR 0.1"].startswith(plan["CLAP LR 0.1"].split(":")[0])


def test_metadata_of_hugging_face_names_images_and_labels(photos, tmp_path):
    images = sorted(file.relative_to(photos).as_posix() for file in photos.rglob("*.*"))
    rows = [{"file_name": name, "label": name.split("/")[0]} for name in images]
    expected = [(str(photos / row["file_name"]), row["label"]) for row in rows]

    def found(place=photos):
        return sorted((photo.path, photo.label) for photo in find(place))

    objects = "\n".join(json.dumps(row | {"caption": [1, None]}) for row in rows)
    (photos / "metadata.jsonl").write_text(objects)
    assert found() == found(photos / "metadata.jsonl") == sorted(expected)
    lines = [f"{row['file_name']},one {number % 2}" for number, row in enumerate(rows)]
    (photos / "metadata.csv").write_text("\n".join(["file_name,label", *lines]))
    assert {label for _, label in found()} == {"one 0", "one 1"}
    (photos / "metadata.csv").write_text("file_name,caption\na.png,b")
    assert len({label for _, label in found()}) == len(list(photos.glob("*/")))
    (photos / "metadata.csv").write_text("file_name,label\n../a.png,b")
    with one_line("line 2 of", "leads out of its folder"):
        find(photos)
    (photos / "metadata.csv").write_text("file_name,label\n")
    with one_line("has no image", "its path and its label"):
        find(photos)
    (photos / "metadata.csv").unlink()
    (photos / "metadata.jsonl").write_text("[1]")
    with one_line("line 1 of", "no JSON object"):
        find(photos)


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_damaged_metadata_is_read_or_refused_in_one_line(ending, photos):
    names = [file.relative_to(photos).as_posix() for file in photos.rglob("*.*")]
    rows = [{"file_name": name, "label": name.split("/")[0]} for name in names]
    lines = [json.dumps(row) for row in rows]
    if ending == "csv":
        lines = ["file_name,label", *(",".join(row.values()) for row in rows)]
    file = photos / f"metadata.{ending}"

    @settings(max_examples=100, deadline=None, database=None, derandomize=True)
    @given(content=damaged("\n".join(lines).encode()))
    def read(content):
        file.write_bytes(content)
        try:
            found = find(photos)
        except UsageError as error:
            assert "\n" not in str(error)
        else:
            assert all(Path(photo.path).resolve().is_relative_to(photos) for photo in found)

    read()


def test_parts_of_hugging_face_have_metadata_of_their_own(photos):
    (photos / "train").mkdir()
    for place in sorted(set(photos.iterdir()) - {photos / "train"}):
        place.rename(photos / "train" / place.name)
    shutil.copytree(photos / "train", photos / "test")
    for part in ("train", "test"):
        names = [file.relative_to(photos / part) for file in (photos / part).rglob("*.*")]
        lines = ["file_name,label", *(f"{name},{name.parts[0]}" for name in names)]
        (photos / part / "metadata.csv").write_text("\n".join(lines))
    parts = [photo.part for photo in find(photos)]
    assert parts.count("train") == parts.count("test") == len(names)
    for part in ("train", "test"):
        (photos / part / "metadata.csv").unlink()
    lines = [f"{part}/{name},{name.parts[0]}" for part in ("train", "test") for name in names]
    (photos / "metadata.csv").write_text("\n".join(["file_name,label", *lines]))
    assert [photo.part for photo in find(photos)] == parts


def spoil(photos, kind):
    """The arguments of a call that cannot work, and a word of its line."""
    classes = sorted(photos.iterdir())
    if kind == "empty":
        (photos.parent / "empty").mkdir()
        return photos.parent / "empty", "no class folders"
    if kind == "one class":
        for folder in classes[1:]:
            shutil.rmtree(folder)
        return photos, "1 class"
    if kind == "nested":  # class folders are taken for images of one class
        (photos.parent / "all").mkdir()
        photos.rename(photos.parent / "all/photos")
        return photos.parent / "all", "1 class"
    table = photos / "table.csv"
    rows = "path,label\nmissing.jpg,red\nmissing.jpg,blue\n"
    texts = {
        "columns": "file,class\n",
        "quote": 'path,label\nmissing.jpg,"red\n',
        "long": rows + "x" * 200_000,
    }
    table.write_text(texts.get(kind, rows))
    words = {"columns": "file, class", "quote": "after line 1 ", "long": "after line 3 "}
    return table, words.get(kind, "missing.jpg")


SPOILED = [
    "empty",
    "one class",
    "nested",
    "columns",
    "missing",
    "quote",
    "long",
    "device",
    "sentences",
    "pipe",
]


@pytest.mark.parametrize("kind", SPOILED)
def test_what_cannot_work_is_one_line(command, photos, tiny, tmp_path, kind):
    os.mkfifo(tmp_path / "pipe.json")
    options = {
        "device": ["--device", "tpu"],
        "sentences": ["--sentences", photos / "none.json"],
        "pipe": ["--sentences", tmp_path / "pipe.json"],
    }.get(kind, [])
    place, word = (photos, str(options[1])) if options else spoil(photos, kind)
    assert (
        word in command(fit, place, "--to", tmp_path / "model", "--backbone", tiny, *options).error
    )
    assert not (tmp_path / "model").exists()


def test_copies_damaged_images_and_single_images_are_reported(command, photos, tiny, tmp_path):
    first, second, third, *_ = sorted(photos.iterdir())
    second = second.rename(second.with_name(" two  words"))
    files = sorted(first.iterdir())
    with Image.open(files[0]) as image:
        image.save(first / "copy.png")  # the same pixels in another file
    shutil.copy(files[1], second / "other.jpg")  # in two classes
    broken = [str(folder / "broken.jpg") for folder in (first, second)]
    for file in broken:
        Path(file).write_bytes(b"no image")
    broken.insert(1, str(first / "link.jpg"))
    Path(broken[1]).symlink_to("gone.jpg")
    for file in sorted(third.iterdir())[1:]:
        file.unlink()
    loops = first / "loop.jpg", photos / "loop"
    for link in loops:
        link.symlink_to(link.name)
    broken.insert(2, str(loops[0]))
    done = command(fit, photos, "--to", tmp_path / "model", "--backbone", tiny, *QUICK)
    assert done.status == 0, done.errors
    record = read(tmp_path / "model")
    printed = done.printed
    assert len(record["images"]) == 48 - 7 - 1 and list(record["damaged"]) == broken
    assert (
        all(file in fault for file, fault in record["damaged"].items())
        and "two words" in record["names"]
    )
    loops[1].unlink()
    assert f"Left out: {loops[1]} is a link that leads nowhere" in printed
    for word in ("two classes", "copies", third.name.replace("_", " ")):
        assert any(word in note for note in record["notes"])

    for folder in photos.iterdir():
        for file in sorted(folder.iterdir())[:-1]:
            file.unlink()
    assert (
        command(
            fit, photos, "--to", tmp_path / "single", "--backbone", tiny, "--test", photos
        ).status
        == 0
    )
    assert (
        read(tmp_path / "single")["estimate"] is None and read(tmp_path / "single")["test"] is None
    )
    below_file = tmp_path / "single/fit.json/model"
    assert "another --to" in command(fit, photos, "--to", below_file, "--backbone", tiny).error
