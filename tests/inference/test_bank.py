"""A bank in place of images: what `tools/embed.py` wrote is read by heads, and no image is."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from marks import of_json, one_line, parquet_library, thorough_but, to_json
from PIL import Image

from common.lock import locked
from fit.estimator import Classifier
from fit.read_images import photos_in, photos_in_rows, table_rows
from inference import bank, embed, predict, shard_files
from inference import calibrate_command as calibrate

pyarrow = parquet_library()
parquet = pyarrow.parquet
pytestmark = pytest.mark.slow
NAMES = "--classes", "a cat", "a dog"


@pytest.fixture
def photos(photos, tmp_path):
    """A copy that a test may change, with an image that cannot be read."""
    folder = shutil.copytree(photos, tmp_path / "photos")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def banked(command, deep, tmp_path):
    """`banked(path, option, ...)`: a bank of exact features by a random CLIP."""

    def banked(*words, to="bank"):
        folder = tmp_path / to
        how = "--to", folder, "--backbone", deep, "--precision", "float32"
        done = command(embed, *words, *how)
        assert done.status in (0, 1), done.errors
        return folder

    return banked


@pytest.fixture
def classes(class_folders, tmp_path):
    """Class folders with 8 images each, one of them there twice."""
    folder = class_folders.rename(tmp_path / "classes")
    image = max(folder.glob("*/*"))
    shutil.copy(image, image.with_name("copy.jpg"))
    return folder


def answers(command, *words):
    """The answers by path; the faults are on stderr."""
    done = command(predict, *words, "--json")
    assert done.status in (0, 1), done.errors
    return {(row["image"], row["model"]): row["top"] for row in json.loads(done.printed)}


@pytest.mark.parametrize("method", thorough_but(("ProLIP",), ("CoOp", "TipAdapter", "ProLIP")))
def test_answers_from_a_bank_are_those_of_its_images(
    method, banked, command, finished, deep, photos
):
    models = [finished(method), finished("KgCoOp")]
    folder = banked(models[0], photos)
    expected = answers(command, *models, photos)
    shutil.rmtree(photos)
    found = answers(command, *models, folder)
    assert len(found) == 5 * len(models) and found.keys() == expected.keys()
    for key, top in found.items():
        assert [pair["class"] for pair in top] == [pair["class"] for pair in expected[key]]
        probabilities = [pair["probability"] for pair in expected[key]]
        np.testing.assert_allclose([pair["probability"] for pair in top], probabilities, atol=1e-4)


def test_a_bank_becomes_a_folder_of_answers_with_one_file_for_each(
    banked, command, deep, photos, tmp_path, monkeypatch
):
    monkeypatch.setattr("inference.sharding.SHARD", 2)
    folder = banked(photos)
    shutil.rmtree(photos)
    monkeypatch.setattr(shard_files, "ROWS", 1)
    line = "--backbone", deep, *NAMES
    done = command(predict, folder, "--to", f"{tmp_path}/answers/", *line)
    assert done.status == 1 and "1 image could not be read" in done.errors[-1]
    written = sorted((tmp_path / "answers").glob("*.parquet"))
    rows = [parquet.read_table(file).to_pylist() for file in written]
    assert [len(part) for part in rows] == [2, 2, 2]
    of_all = [row for part in rows for row in part]
    assert [row["path"] for row in of_all if row["error"]] == [str(photos / "broken.png")]
    expected = answers(command, folder, *line)
    for row in of_all:
        if not row["error"]:
            (top,) = (top for (path, _), top in expected.items() if path == row["path"])
            assert row["answer"] == top[0]["class"] and row["height"] == 50


def test_banks_of_others_are_refused(banked, command, deep, tiny, finished, photos, tmp_path):
    folder = banked(photos)
    of_deep = "--backbone", deep, *NAMES

    def refused(words, *line, of=of_deep, program=predict):
        assert words in command(program, *line, *of).error

    refused("of other weights than", folder, of=("--backbone", tiny, *NAMES))
    refused("has an image tower of its own", finished("MPL"), folder, of=())
    refused("banks and images", folder, photos)
    refused("a bank has features already", folder, "--to", tmp_path / "x", program=embed)
    own = tmp_path / "own"
    assert command(embed, finished("MPL"), photos, "--to", own).status == 1
    refused("has no features for heads", own)
    record = of_json(folder / bank.RECORD)
    for change, words in {
        "input": "another transform",
        "backbone_sha256": "other weights",
        "form": "no features for heads",
    }.items():
        to_json(folder / bank.RECORD, record | {change: "another"})
        refused(words, folder)
    to_json(folder / bank.RECORD, record)
    file = folder / "00000.parquet"
    for shards in (2, None):  # the last is missing; the command has not ended
        to_json(folder / bank.RECORD, record | {bank.COUNT: shards})
        refused("lacks files", folder)
    to_json(folder / bank.RECORD, record)
    file.rename(folder / "00001.parquet")
    refused("lacks files", folder)
    (folder / "00001.parquet").unlink()
    file.write_bytes(b"PAR1")
    refused("is damaged", folder)


def column(values, kind=None):
    """A change of a table: a column gets these values, or one value in all rows."""
    return lambda table: pyarrow.array(values * len(table), kind)


NO_BANKS = {
    "path": (None, column([None], "string"), column([3]), column([b"a"])),
    "sha256": (None, column(["z" * 64]), column([None], "string")),
    "error": (None, column([None], "string"), column(["gone"])),
    "width": (None, column(["x"])),
    "tower": (
        None,
        column([None], "float"),
        column([[1.0]]),
        column([None], pyarrow.list_(pyarrow.float32(), 64)),
    ),
    "signature": (
        column([[1, 2]]),
        column(["x"]),
        column([None], pyarrow.list_(pyarrow.int8(), 462)),
    ),
    "pixels_sha256": (column([None], "string"), column(["no checksum"])),
    "second": (column(["x"]), column([None], "double")),
}


def test_a_bank_of_another_form_is_refused_in_one_line(
    banked, command, fitting, deep, classes, tmp_path
):
    folder = banked(classes, "--near-copies")
    file = folder / "00000.parquet"
    table = parquet.read_table(file)
    for name, changes in NO_BANKS.items():
        place = table.schema.get_field_index(name)
        for change in changes:
            other = table.remove_column(place)
            if change:
                other = other.add_column(place, name, change(table))
            parquet.write_table(other, file)
            found = [fitting(folder, "--backbone", deep, "--methods", "GDA").error]
            if name in ("path", "error", "width", "tower"):
                found.append(command(predict, folder, "--backbone", deep, *NAMES).error)
            for error in found:
                assert f"{file} is damaged" in error and "embed again" in error


def test_a_bank_without_images_is_refused_in_one_line(banked, command, fitting, deep, photos):
    folder = banked(photos)
    file = folder / "00000.parquet"
    parquet.write_table(parquet.read_table(file).slice(0, 0), file)
    for options in ([], ["--csv"]):
        done = command(predict, folder, "--backbone", deep, *options, *NAMES)
        assert done.status == 2 and "the bank has no images" in done.error
    assert "no image of" in fitting(folder, "--backbone", deep, "--methods", "GDA").error


def fitted(folder):
    """What fit.json says, without what depends on the machine."""
    record = of_json(folder / "fit.json")
    chosen = [(row["method"], row["settings"]) for row in record["chosen"]]
    accuracies = [round(row["accuracy"], 3) for row in record["candidates"]]
    return record["names"], chosen, accuracies, record["estimate"], record["grouped"]


def test_a_fit_of_a_bank_with_signatures_equals_the_fit_of_its_images(
    banked, command, fitting, deep, classes, tmp_path, monkeypatch
):
    # Where the processor has units for bf16, a fit of images takes them, and a bank has fp32.
    monkeypatch.setattr("fit.features.usable", lambda wanted, device: "fp32")
    # A damaged image has no look: the bank was then said to be written without --near-copies
    min(classes.glob("*/*")).with_name("damaged.png").write_text("no image")
    folder = banked(classes, "--near-copies")
    how = "--backbone", deep, "--methods", "GDA", "ZSLP", "VisionProbe"
    fitting.works(classes, *how, to="of_images")
    shutil.move(classes, tmp_path / "gone")
    fitting.works(folder, *how, to="of_bank")
    assert fitted(tmp_path / "of_bank") == fitted(tmp_path / "of_images")
    assert "copies of other images" in (tmp_path / "of_bank/report.html").read_text()
    assert (tmp_path / "of_bank/seen.npz").exists()
    assert "Already done" in fitting(folder, *how, to="of_bank").printed
    shutil.move(tmp_path / "gone", classes)
    tops, of_images = (
        {key: top[0]["class"] for key, top in answers(command, *line).items()}
        for line in ((tmp_path / "of_bank", place, *how[:2]) for place in (folder, classes))
    )
    assert tops == of_images


def test_the_table_of_labels_of_a_bank_can_be_given_back(
    banked, fitting, deep, classes, tmp_path, monkeypatch
):
    """Paths of the bank were read as if they began at the table: no image had a label."""
    monkeypatch.chdir(tmp_path)
    folder = banked(classes.name)
    fitting.works(folder, "--backbone", deep, "--methods", "GDA")
    table = tmp_path / "model/labels.csv"
    labels = {photo.path: photo.label for photo in photos_in(folder)}
    given = {photo.path: photo.label for photo in photos_in(folder, table)}
    assert len(given) == 48 and given.items() <= labels.items()  # without the copy

    table.write_text("path,label\ns3://host/a.jpg,cat\n")
    assert photos_in_rows(table_rows(table), table)[0].path == "s3://host/a.jpg"
    with one_line(f"no image of {folder} has a label in {table}"):
        photos_in(folder, table)


def test_a_bank_without_looks_has_no_groups_and_says_so(banked, command, deep, classes, tmp_path):
    folder = banked(classes)
    shutil.rmtree(classes)
    model = Classifier(backbone=str(deep), methods=["GDA"], minutes=1).fit(folder)
    assert any("written without --near-copies" in note for note in model.notes_)
    assert any("Prompts and CLIP-LoRA were not tried" in note for note in model.notes_)
    assert set(model.leaderboard_["name"]) == {"ZeroshotCLIP", "GDA ALPHA 10.0"}
    assert len(model.predict(folder)) == 49 and model.predict_proba(str(folder)).shape == (49, 6)
    model.save(tmp_path / "model")
    assert not (tmp_path / "model/seen.npz").exists()  # it could not tell which images it has seen
    wrong = Classifier(backbone="small", methods=["GDA"])
    with one_line("of other weights"):
        wrong.fit(folder)


def test_an_image_listed_twice_counts_once(banked, classes, tmp_path):
    first, second, *_ = sorted(classes.glob("*/*"))
    (tmp_path / "list.txt").write_text(f"{first}\n{second}\n{first}\n")
    found = photos_in(banked(tmp_path / "list.txt", classes, to="twice"))
    assert len(found) == len({photo.path for photo in found}) == 49


def test_an_unfinished_bank_is_refused(banked, photos):
    folder = banked(photos)
    with locked(folder, option="--to"), one_line("is being written"):
        bank.Bank(folder)
    assert len(bank.Bank(folder).files) == 1


def test_labels_of_a_bank_are_those_of_a_file_or_of_folders(
    banked, fitting, deep, classes, tmp_path
):
    for name in ("train", "test"):
        shutil.copytree(classes, tmp_path / "parts" / name)
    found = photos_in(banked(tmp_path / "parts", to="parts_bank"))
    assert len(found) == 98 and {photo.part for photo in found} == {"train", "test"}
    assert {photo.label for photo in found} == {photo.label for photo in photos_in(banked(classes))}
    folder = tmp_path / "bank"
    paths = [photo.path for photo in photos_in(folder)]
    rows = [(path, f"of {number % 3}") for number, path in enumerate(paths[:9])]
    lines = [f"{Path(path).relative_to(tmp_path)},{label}" for path, label in rows]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *lines]))
    labelled = photos_in(folder, tmp_path / "labels.csv")
    assert [(photo.path, photo.label) for photo in labelled] == rows
    (tmp_path / "others.csv").write_text("path,label\nx.jpg,a\n")
    for place, labels, words in (
        (folder, "others.csv", "no image of"),
        (classes, "labels.csv", "is not a bank"),
    ):
        assert words in fitting(place, "--labels", tmp_path / labels, "--backbone", deep).error


def write_noise(folder, seed):
    """An image of noise in a class folder."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f"{seed}.png")


def test_calibrate_reads_a_bank_with_signatures(
    banked, command, fitting, deep, classes, photos, tmp_path
):
    others = tmp_path / "others"
    for number, file in enumerate(sorted(classes.glob("*/*"))):
        write_noise(others / file.parent.name, number)
    model = tmp_path / "model"
    fitting.works(banked(classes, "--near-copies"), "--backbone", deep, "--methods", "GDA")
    line = model, "--backbone", deep, "--accept-test-images", "--images"
    seen = command(calibrate, *line, banked(classes, "--near-copies", to="same"))
    assert "are training images of" in seen.error
    folder = banked(others, "--near-copies", to="new")
    unknown = banked(others, to="unknown")
    shutil.rmtree(others)
    command.works(calibrate, *line, folder)
    first = of_json(model / "calibration.json")
    assert "does not say how its images look" in command(calibrate, *line, unknown).error
    command.works(calibrate, *line, unknown, "--accept-unknown-images")
    second = of_json(model / "calibration.json")
    assert second["unknown_images"] and not first["unknown_images"]
    assert second["sha256"] == first["sha256"] and second["temperature"] == first["temperature"]
    stray = command(calibrate, *line, banked(photos, "--near-copies", to="x"))
    assert "is in no folder named after a class" in stray.error


def test_many_images_of_a_bank_are_not_answered_together(banked, command, deep, photos):
    line = banked(photos), "--backbone", deep, *NAMES, "--transductive", "ZLaP"
    assert "--transductive reads images, and no bank" in command(predict, *line).error
