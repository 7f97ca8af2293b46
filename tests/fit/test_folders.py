"""tools/fit.py: how folders and files of images are read, and what is refused."""

import json
import os
import shutil
from pathlib import Path

import pytest
from hostile import damaged
from hypothesis import given, settings
from marks import of_json, one_line
from PIL import Image

from common import image_files
from common.errors import UsageError
from fit.read_images import find, table_rows
from inference.images import find_images

QUICK = ["--methods", "GDA", "VisionProbe"]


def read(folder):
    return of_json(folder / "fit.json")


@pytest.fixture
def photos(class_folders):
    return class_folders


def test_what_a_folder_holds_and_is_not_read_is_named(photos, tmp_path, capsys, monkeypatch):
    read = tuple(ending for ending in image_files.IMG_EXTENSIONS if ending not in image_files.HEIC)
    monkeypatch.setattr(image_files, "IMG_EXTENSIONS", read)
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
    assert len(found) == count + 3
    assert {Path(photo.path).name for photo in found} >= {"b.GIF", "c.jfif", "f.jpg"}
    printed = capsys.readouterr().out
    for words in (
        f"no images in {photos}/raw, but 3 .cr2",
        f"{photos}/none, but no files",
        "3 .cr2, 1 .heic, 1 .txt, 1 without an ending; `pip install",
    ):
        assert words in printed
    paths = {str(file) for file in find_images([photos])}
    assert paths == {photo.path for photo in found}

    parts = tmp_path / "parts"
    for part in ("train", "test"):
        shutil.copytree(
            photos, parts / part, ignore=shutil.ignore_patterns("raw", "none", "link", second.name)
        )
    shutil.move(photos, parts / "more")
    assert {photo.label for photo in find(parts)}.isdisjoint({"more", second.name})
    assert "1 folders beside train, such as more" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["Train", "TEST", "val", "validation"])
def test_a_part_is_never_a_class(name, photos):
    shutil.copytree(min(photos.iterdir()), photos / name / "red")
    with one_line(f"has a folder {name} where class folders are"):
        find(photos)


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
    with one_line("line 1 of", "not a JSON object"):
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


TABLES = {
    "file,class\n": "file, class",
    'path,label\nmissing.jpg,"red\n': "after line 1 ",
    f"path,label\nmissing.jpg,red\nmissing.jpg,blue\n{'x' * 200_000}": "after line 3 ",
    "path,label\nmissing.jpg,red\nmissing.jpg,blue\n": "missing.jpg",
}


def test_impossible_requests_print_one_line(fitting, photos, tmp_path):
    def refused(words, images, *options):
        assert words in fitting(images, *options).error
        assert not (tmp_path / "model").exists()

    refused("tpu", photos, "--device", "tpu")
    os.mkfifo(tmp_path / "pipe.json")
    for name in ("none.json", "pipe.json"):
        refused(name, photos, "--sentences", tmp_path / name)
    for text, words in TABLES.items():
        (tmp_path / "table.csv").write_text(text)
        refused(words, tmp_path / "table.csv")
    (tmp_path / "empty").mkdir()
    refused("no class folders", tmp_path / "empty")
    _, *others = photos.iterdir()
    for folder in others:
        shutil.rmtree(folder)
    refused("1 class", photos)
    photos.rename(tmp_path / "empty/photos")  # class folders are taken for images of one class
    refused("1 class", tmp_path / "empty")


def test_copies_damaged_images_and_single_images_are_reported(fitting, photos, tmp_path):
    first, second, third, *_ = sorted(photos.iterdir())
    second = second.rename(second.with_name(" two  words"))
    files = sorted(first.iterdir())
    with Image.open(files[0]) as image:
        image.save(first / "copy.png")  # the same pixels in another file
    shutil.copy(files[1], second / "other.jpg")  # in two classes
    links = {"link.jpg": "gone.jpg", "loop.jpg": "loop.jpg"}
    for name, target in links.items():
        (first / name).symlink_to(target)
    broken = [first / "broken.jpg", *(first / name for name in links), second / "broken.jpg"]
    for file in (broken[0], broken[-1]):
        file.write_bytes(b"no image")
    for file in sorted(third.iterdir())[1:]:
        file.unlink()
    loop = photos / "loop"
    loop.symlink_to("loop")
    printed = fitting.works(photos, *QUICK).printed
    record = read(tmp_path / "model")
    assert len(record["images"]) == 48 - 7 - 1 and "two words" in record["names"]
    assert sorted(record["damaged"]) == sorted(map(str, broken))
    assert all(file in fault for file, fault in record["damaged"].items())
    loop.unlink()
    assert f"Left out: {loop} is a link that leads nowhere" in printed
    for word in ("two classes", "copies", third.name):
        assert any(word in note for note in record["notes"])

    for folder in photos.iterdir():
        for file in sorted(folder.iterdir())[:-1]:
            file.unlink()
    fitting.works(photos, "--test", photos, to="single")
    single = read(tmp_path / "single")
    assert single["estimate"] is None and single["test"] is None
    assert "another --to" in fitting(photos, to="single/fit.json/model").error


@pytest.mark.parametrize("letter", ["\u2028", "\x85", "\x0b", "\x1c"])
def test_other_line_separators_are_parts_of_names(letter, tmp_path):
    row = {"path": f"a{letter}b.png", "label": "cat"}
    table = tmp_path / "images.csv"
    table.write_text(f'path,label\r\n{row["path"]},cat\n"a\nb.png",dog\n')
    assert table_rows(table) == [(2, row), (4, {"path": "a\nb.png", "label": "dog"})]
    objects = tmp_path / "images.jsonl"
    objects.write_text(json.dumps(row, ensure_ascii=False) + "\n")
    # JSON escapes control characters
    assert table_rows(objects) == [(1, row)]


@pytest.mark.slow
def test_the_table_of_labels_can_be_given_back(photos, tmp_path, monkeypatch, fitting):
    """Its paths were those of the command, and read as if they began at the table; a label that
    a spreadsheet would run kept the ' in front of it.
    """
    monkeypatch.chdir(tmp_path)
    min(photos.iterdir()).rename(photos / "=1+1")
    relative = os.path.relpath(photos, tmp_path)
    fitting.works(relative, *QUICK, to="deep/model")
    table = tmp_path / "deep/model/labels.csv"
    assert "'=1+1" in table.read_text()
    monkeypatch.chdir(photos)
    given = {(photo.path, photo.label) for photo in find(photos)}
    assert {(photo.path, photo.label) for photo in find(table)} == given
    fitting.works(table, *QUICK, to="again")
    assert "=1+1" in read(tmp_path / "again")["names"]


@pytest.mark.parametrize("name", ["", "a.jpg"])
def test_a_folder_without_class_folders_says_what_to_do(name, fitting, tmp_path):
    (tmp_path / "flat").mkdir()
    if name:
        (tmp_path / "flat" / name).touch()
    error = fitting(tmp_path / "flat").error
    assert "no class folders in" in error and "tools/label.py helps to label" in error


def test_the_last_line_finds_the_backbone(fitting, photos, tiny, tmp_path):
    lines = fitting.works(photos, *QUICK).printed.splitlines()
    to = tmp_path / "model"
    assert lines[-1] == f"Next: python tools/predict.py {to} photo.jpg --backbone {tiny}"


def test_a_vote_names_its_heads(fitting, photos):
    printed = fitting.works(photos, "--methods", "VisionProbe", "KernelProbe").printed
    assert "Chosen: a vote of 2 heads (ridge on features + kernel)" in printed


@pytest.mark.parametrize("words", [("--pool", "photos"), ("--sets", "cross"), ("--classes", "owl")])
def test_an_option_of_an_older_version_says_what_to_do_instead(words, fitting, photos, tmp_path):
    done = fitting(photos, *words)
    assert f"{words[0]} was removed: " in done.error
    assert not (tmp_path / "model").exists()
