"""tools/fit.py: how folders and files of images are read, and what is refused."""

import json
import os
import shutil
from pathlib import Path

import pytest
from hostile import damaged
from hypothesis import given, settings
from marks import one_line
from PIL import Image
from test_fit import QUICK, read

from common.errors import UsageError
from datasets import folders
from datasets.preparing import own_images
from fit import command as fit
from fit.images import find
from inference.images import find_images


@pytest.fixture
def photos(class_folders):
    return class_folders


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
    for reader in (find, own_images.check_folder):
        with one_line(f"has a folder {name} where class folders are"):
            reader(photos)


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
    done = command.works(fit, photos, "--to", tmp_path / "model", "--backbone", tiny, *QUICK)
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
    command.works(fit, photos, "--to", tmp_path / "single", "--backbone", tiny, "--test", photos)
    assert (
        read(tmp_path / "single")["estimate"] is None and read(tmp_path / "single")["test"] is None
    )
    below_file = tmp_path / "single/fit.json/model"
    assert "another --to" in command(fit, photos, "--to", below_file, "--backbone", tiny).error
