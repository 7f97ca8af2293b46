"""tools/label.py: which images to label next; and what tools/fit.py makes of such labels."""

import csv
import shutil

import pytest
from marks import of_json
from PIL import Image

from common.lock import locked
from fit.label import command as label
from fit.read_images import find
from inference import embed
from measures.labelling import METHODS

pytestmark = pytest.mark.slow
NAMES = ["red", "green field", "blue lake", "grey", "white snow", "black"]
CLASSES = ["--classes", *NAMES]


@pytest.fixture
def pool(eurosat, tmp_path):
    """A folder with 8 images of each class, whose names say it, and a copy of the first one."""
    folder = tmp_path / "pool"
    folder.mkdir()
    for place, name in enumerate(NAMES):
        files = sorted((eurosat / f"eurosat/2750/{place}").iterdir())[:8]
        for file in files:
            shutil.copy(file, folder / f"{name.replace(' ', '_')}-{file.name}")
    first = min(folder.iterdir())
    shutil.copy(first, folder / f"copy-{first.name}")
    return folder


def read(file):
    with open(file, newline="") as text:
        return list(csv.DictReader(text))


def fill(file, change=lambda row: row):
    """Write the label of each image, which is in its name."""
    rows = read(file)
    for row in rows:
        name = row["path"].rpartition("/")[2].removeprefix("copy-").split("-")[0]
        row["label"] = name.replace("_", " ")
    rows = list(map(change, rows))
    with open(file, "w", newline="") as text:
        writer = csv.DictWriter(text, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def ask(command, pool, tiny, tmp_path):
    """`ask(budget, ...)` -> how the command ended, whose file is asked.csv."""

    def ask(budget, *words, place=pool, model=("--backbone", tiny, *CLASSES)):
        return command(
            label, place, "--count", budget, "--to", tmp_path / "asked.csv", *model, *words
        )

    return ask


def test_rounds_of_labels(ask, fitting, tiny, tmp_path):
    file = tmp_path / "asked.csv"
    assert ask(12).status == 0
    rows = read(file)
    assert [row["asked"] for row in rows] == 9 * ["chosen"] + 3 * ["random"]
    assert {row["label"] for row in rows} == {""} and {row["guess"] for row in rows} <= {*NAMES}
    before = file.read_text()
    assert "have no label, such as that of" in ask(12).error
    assert file.read_text() == before
    fill(file, lambda row: row | {"comment": "mine"})
    assert ask(8).status == 0
    fill(file)
    printed = fitting.works(file, "--methods", "GDA", "VisionProbe").printed
    assert "NO ESTIMATE" in printed and "Estimate:" not in printed
    assert not (tmp_path / "model/calibration.json").exists()
    model = "--model", tmp_path / "model", "--backbone", tiny
    assert ask(20, "--method", "random", model=model).status == 0
    rows = read(file)
    assert len({row["path"] for row in rows}) == len(rows) == 40
    assert len([row for row in rows if row["asked"] == "random"]) == 3 + 2 + 5
    assert rows[0]["comment"] == "mine" and rows[-1]["comment"] == ""
    # The copy is of the same scene
    names = [row["path"].rpartition("/")[2].removeprefix("copy-") for row in rows]
    assert len(set(names)) == 40
    fill(file)
    assert "--count is 9, and 8 groups" in ask(9, model=model).error


def test_a_pool_of_one_image_is_asked_for(ask, pool, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(min(pool.iterdir()), alone)
    assert ask(1, place=alone).status == 0
    assert len(read(tmp_path / "asked.csv")) == 1


def test_the_same_call_asks_for_the_same_images(ask, pool, tmp_path):
    file = tmp_path / "asked.csv"
    assert ask(10).status == 0
    first = read(file)
    file.unlink()
    (pool / "broken.png").write_text("no image")
    done = ask(10)
    assert done.status == 0 and "broken.png" in done.printed and read(file) == first
    for method in METHODS:
        file.unlink()
        assert ask(10, "--method", method).status == 0 and len(read(file)) == 10


def test_a_bank_and_a_list_are_pools(ask, command, pool, tiny, tmp_path):
    pytest.importorskip("pyarrow", reason="requirements-parquet.txt")
    file = tmp_path / "asked.csv"
    assert ask(10).status == 0
    expected = [row["path"] for row in read(file)]
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{image}\n" for image in sorted(pool.iterdir())))
    bank = tmp_path / "bank"
    words = ["--backbone", tiny, "--near-copies", "--precision", "float32"]
    command.works(embed, pool, "--to", bank, *words)
    file.unlink()
    assert ask(10, place=listed).status == 0
    assert [row["path"] for row in read(file)] == expected
    file.unlink()
    assert ask(48, place=bank).status == 0  # whose features may be rounded otherwise
    assert len({row["path"] for row in read(file)}) == 48


def test_impossible_requests_print_one_line(ask, tmp_path):
    file = tmp_path / "asked.csv"
    assert "--count is 60, and 48 groups" in ask(60).error and not file.exists()
    assert "there is no method 'margin'" in ask(4, "--method", "margin").error
    assert "no model at" in ask(4, "--model", tmp_path / "nothing").error
    assert "there is no pool" in ask(4, place=tmp_path / "nothing").error
    (tmp_path / "empty").mkdir()
    assert "has no image that can be read" in ask(4, place=tmp_path / "empty").error
    (tmp_path / "list.txt").write_text("file:///a.png\n")
    assert "make a bank of it" in ask(4, place=tmp_path / "list.txt").error
    assert ask(4).status == 0
    fill(file, lambda row: row | {"label": "reed"})
    assert "mean red" in ask(4).error
    file.write_text("path,label\na.png,red\n")
    assert "has no columns path, label and asked" in ask(4).error


def test_a_pool_with_training_images_of_the_model_is_refused(ask, fitting, tiny, tmp_path):
    file = tmp_path / "asked.csv"
    assert ask(20).status == 0
    fill(file)
    fitting.works(file, "--methods", "GDA")
    file.unlink()
    done = ask(4, model=("--model", tmp_path / "model", "--backbone", tiny))
    assert "the model has learned from " in done.error


def test_a_model_with_a_tower_of_its_own_answers_from_the_images(ask, pool, finished, deep):
    for image in pool.glob("*train*"):  # which it has learned from
        image.unlink()
    done = ask(8, model=("--model", finished("TDA"), "--backbone", deep, *CLASSES))
    assert "TDA answers from views of an image" in done.error
    assert ask(8, model=("--model", finished("VPT"), "--backbone", deep)).status == 0


def test_only_images_drawn_at_random_estimate_and_calibrate(fitting, pool, tmp_path):
    images = sorted(image for image in pool.iterdir() if not image.name.startswith("copy"))
    lines = ["path,label,asked"]
    for number, image in enumerate(images):
        name = image.name.split("-")[0].replace("_", " ")
        lines.append(f"{image},{name},{'random' if number % 2 else 'chosen'}")
    file = tmp_path / "asked.csv"
    quick = "--methods", "GDA", "VisionProbe", "--groups", "none"
    file.write_text("\n".join([*lines, f"{images[0]},,chosen"]))
    printed = fitting.works(file, *quick).printed
    assert "Left out: 1 lines of" in printed
    assert "are of the 24 images that were drawn at random" in printed
    found = of_json(tmp_path / "model/fit.json")
    assert found["estimate"]["images"] == 24 and found["curve"] == []
    assert of_json(tmp_path / "model/calibration.json")["images"] == 24
    report = (tmp_path / "model/report.html").read_text()
    assert "were drawn at random" in report
    # The same without the column
    plain = tmp_path / "plain.csv"
    plain.write_text("\n".join(line.rpartition(",")[0] for line in lines))
    fitting.works(plain, *quick, to="plain")
    whole = of_json(tmp_path / "plain/fit.json")
    assert whole["estimate"]["images"] == 48 and whole["request"] != found["request"]
    assert {photo.asked for photo in find(plain)} == {""}
    lone = pool / "lone.png"
    Image.new("RGB", (40, 40), (9, 200, 180)).save(lone)
    file.write_text("\n".join([*lines, f"{lone},teal,random"]))
    assert "counts 1 of these as wrong" in fitting(file, *quick).printed
    less = of_json(tmp_path / "model/fit.json")["estimate"]
    assert less["accuracy"] < found["estimate"]["accuracy"]
    file.write_text("\n".join([*lines, f"{images[0]},red,perhaps"]))
    assert "has 'perhaps' in the column asked" in fitting(file, *quick).error


def test_an_image_in_no_class_is_not_asked_for_again(ask, fitting, tmp_path):
    file = tmp_path / "asked.csv"
    assert ask(12).status == 0
    fill(file, lambda row: row | {"reason": ""})
    rows = read(file)
    rows[0] |= {"label": "", "reason": "none of these"}
    rows[1] |= {"label": "", "reason": "skipped"}
    label.write_lines(file, rows)
    assert ask(12).status == 0
    assert len({row["path"] for row in read(file)}) == 24 and read(file)[12]["reason"] == ""
    fill(file, lambda row: row | ({"label": ""} if row["reason"] else {}))
    assert "Left out: 2 lines of" in fitting.works(file, "--methods", "GDA").printed


def test_thumbnails_are_numbered_as_in_the_file(ask, pool, tmp_path):
    file = tmp_path / "asked.csv"
    Image.new("RGB", (900, 500), "red").save(pool / "red-large.png")
    assert ask(49, "--thumbnails", tmp_path / "small").status == 0
    rows = read(file)
    assert [row["thumbnail"] for row in rows] == [f"{number:05}.jpg" for number in range(1, 50)]
    assert {path.name for path in (tmp_path / "small").iterdir()} == {
        row["thumbnail"] for row in rows
    }
    (large,) = [row["thumbnail"] for row in rows if "large" in row["path"]]
    with Image.open(tmp_path / "small" / large) as picture:
        assert picture.format == "JPEG" and picture.size == (320, 178)
    file.unlink()
    assert "is not empty" in ask(4, "--thumbnails", tmp_path / "small").error
    assert not file.exists()
    done = ask(4, "--thumbnails", tmp_path / "others", "--page")
    assert "not allowed with argument --thumbnails" in done.error


def test_a_failed_write_leaves_no_thumbnails(ask, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:

        def full(*_):
            raise OSError(28, "No space left on device")

        patch.setattr("fit.label.command.write_lines", full)
        assert ask(4, "--thumbnails", tmp_path / "small").status == 2
    assert not (tmp_path / "small").exists()
    assert ask(4, "--thumbnails", tmp_path / "small").status == 0


def test_two_commands_do_not_write_one_file(ask, tmp_path):
    with locked(tmp_path, name=".asked.csv.lock"):
        assert "another --to" in ask(4).error
    assert not (tmp_path / "asked.csv").exists()
