"""tools/embed.py: the features of images in files for other programs."""

import hashlib
import json
import os
import shutil
import tarfile

import numpy as np
import pytest
from marks import of_json, parquet_library
from PIL import Image

from common.lock import locked
from common.version import __version__
from inference import batches, embed, predict, sharding
from inference.load import load
from inference.options import LoadOptions

pyarrow = parquet_library()
parquet = pyarrow.parquet
pytestmark = pytest.mark.slow


@pytest.fixture
def photos(photos, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(photos, tmp_path / "photos")


@pytest.fixture
def embedded(command, deep, tmp_path):
    """`embedded(path, ..., option, ...)`: the features of images by a random CLIP, in out/."""

    def embedded(*words, to="out", errors=0):
        done = command(embed, *words, "--to", tmp_path / to, "--backbone", deep)
        assert done.status == bool(errors), done.errors
        assert not errors or f"{errors} image" in done.errors[-1]
        return tmp_path / to

    return embedded


def rows_in(folder):
    return [row for file in sorted(folder.glob("*.parquet")) for row in rows_of(file)]


def rows_of(file):
    return parquet.read_table(file).to_pylist()


def test_a_row_for_each_image_has_its_feature_or_its_error(embedded, deep, photos, monkeypatch):
    monkeypatch.setattr(sharding, "SHARD", 2)
    (photos / "broken.png").write_bytes(b"no image")
    (photos / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(photos / "pipe.png")
    folder = embedded(photos, "--precision", "float32", errors=3)
    rows = rows_in(folder)
    assert [len(rows_of(file)) for file in sorted(folder.glob("*.parquet"))] == [2, 2, 2, 2]
    faults = {row["path"]: row["error"] for row in rows if row["feature"] is None}
    assert {*faults} == {str(photos / f"{name}.png") for name in ("broken", "gone", "pipe")}
    assert "broken.png" in faults[str(photos / "broken.png")]
    good = [row for row in rows if row["feature"] is not None]
    classifier = load(None, LoadOptions(backbone=str(deep), class_names=["a cat", "a dog"]))
    features = classifier.features([row["path"] for row in good]).numpy()
    np.testing.assert_allclose([row["feature"] for row in good], features, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    content = (photos / "a.jpg").read_bytes()
    (row,) = [row for row in good if row["path"] == str(photos / "a.jpg")]
    assert row["sha256"] == hashlib.sha256(content).hexdigest() and row["error"] == ""
    assert (row["width"], row["height"]) == Image.open(photos / "a.jpg").size
    assert {row["width"] for row in rows if row["feature"] is None} == {None}


def test_the_same_call_computes_what_is_missing_or_changed(embedded, photos, monkeypatch):
    monkeypatch.setattr(sharding, "SHARD", 2)
    folder = embedded(photos)
    before = {file.name: file.read_bytes() for file in folder.glob("*.parquet")}
    facts = of_json(folder / "_embed.json")
    assert facts["shards"] == len(before) and facts["made"]["version"] == __version__
    computed = []
    original = embed.FeatureFiles.rows
    monkeypatch.setattr(
        embed.FeatureFiles,
        "rows",
        lambda self, files: computed.append(files) or original(self, files),
    )
    embedded(photos)
    assert computed == []
    (folder / "00001.parquet").write_bytes(before["00001.parquet"][:100])
    (folder / ".00001.parquet.1-2.partial").touch()
    embedded(photos)
    assert len(computed) == 1 and not list(folder.glob(".*.partial"))
    assert {file.name: file.read_bytes() for file in folder.glob("*.parquet")} == before
    shutil.copy(photos / "b.png", photos / "a.jpg")
    embedded(photos)
    assert len(computed) == 2
    shutil.rmtree(photos / "below")
    (photos / "b.png").unlink()
    embedded(photos)
    names = {row["path"] for row in rows_in(folder)}
    assert names == {str(photos / name) for name in ("a.jpg", "d.webp", "e f.bmp")}


def test_features_say_what_they_depend_on_and_others_are_refused(
    embedded, command, deep, tiny, finished, photos, tmp_path
):
    def facts_of(folder):
        return json.loads(parquet.read_schema(folder / "00000.parquet").metadata[b"embed"])

    folder = embedded(photos)
    facts = facts_of(folder)
    assert facts["backbone"] == deep.name and len(facts["backbone_sha256"]) == 64
    assert facts["input"]["SIZE"] == [32, 32] and facts["precision"] == "float16"
    run = embedded(finished("MPL"), photos, to="run")
    facts = facts_of(run)
    assert facts["method"] == "MPL" and len(facts["model_sha256"]) == 64
    rows = rows_in(run)
    found = np.array([row["feature"] for row in rows])
    expected = load(finished("MPL")).features([row["path"] for row in rows]).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.abs(found - [row["feature"] for row in rows_in(folder)]).max() > 0.01

    def refused(words, images, to, *options):
        assert words in command(embed, images, "--to", to, "--backbone", deep, *options).error

    refused("has features of another model", photos, folder, "--backbone", tiny)
    refused("has features of another", photos, folder, "--precision", "float32")
    refused("is not empty", photos, photos)
    (tmp_path / "empty").mkdir()
    refused("there are no images", tmp_path / "empty", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_layout_of_clip_retrieval(embedded, photos, monkeypatch):
    monkeypatch.setattr(sharding, "SHARD", 2)
    (photos / "broken.png").write_bytes(b"no image")
    rows = rows_in(embedded(photos, errors=1))
    folder = embedded(photos, "--layout", "clip-retrieval", to="retrieval", errors=1)
    features = [np.load(file) for file in sorted((folder / "img_emb").iterdir())]
    metadata = [row for file in sorted((folder / "metadata").iterdir()) for row in rows_of(file)]
    assert [row["image_path"] for row in metadata] == [row["path"] for row in rows]
    assert [len(part) for part in features] == [2, 2, 2] and features[0].dtype == np.float16
    for feature, row in zip(np.concatenate(features), rows, strict=True):
        assert feature.tolist() == (row["feature"] or [0] * len(feature))


def test_a_feature_is_of_the_bytes_with_the_written_checksum(embedded, photos, monkeypatch):
    content = (photos / "a.jpg").read_bytes()
    expected = {row["path"]: row for row in rows_in(embedded(photos))}
    original = batches.read_bytes

    def changing(file, most):
        found = original(file, most)
        if file.name == "a.jpg":
            shutil.copy(photos / "b.png", file)
        return found

    monkeypatch.setattr(batches, "read_bytes", changing)
    rows = {row["path"]: row for row in rows_in(embedded(photos, to="again"))}
    assert rows == expected and (photos / "a.jpg").read_bytes() != content


def test_shares_of_machines_are_together_what_one_writes(embedded, command, photos, monkeypatch):
    monkeypatch.setattr(sharding, "SHARD", 2)
    whole = embedded(photos)
    folder = embedded(photos, "--shard", "2/2", to="parts")
    assert [file.name for file in folder.glob("*.parquet")] == ["00001.parquet"]
    other = folder / ".00000.parquet.1-2.partial"
    other.touch()  # which another machine is writing
    embedded(photos, "--shard", "2/2", to="parts")
    assert other.exists()
    embedded(photos, "--shard", "1/2", to="parts")
    assert not other.exists()
    files = sorted(whole.glob("*.parquet"))
    assert len(files) == len([*folder.glob("*.parquet")]) == 3
    for file in files:
        assert (folder / file.name).read_bytes() == file.read_bytes()
    done = command(embed, photos, "--to", folder, "--shard", "3/2")
    assert "expected 1/16 to 16/16" in done.error


def test_other_shares_wait_until_those_of_a_running_command_have_ended(
    embedded, command, deep, photos
):
    folder = embedded(photos, "--shard", "1/2")
    words = photos, "--to", folder, "--backbone", deep
    with locked(folder, name=".lock-2-of-2"):
        for other in (["--shard", "1/3"], []):
            assert "written with --shard 2/2" in command(embed, *words, *other).error
    with locked(folder):
        assert "another run is in" in command(embed, *words).error


def test_lists_name_images(embedded, command, deep, photos, tmp_path):
    names = ["a.jpg", "gone.png", "below/c.PNG", str(photos / "b.png")]
    (photos / "list.txt").write_text("\n\n".join(names))
    (photos / "list.csv").write_text("\n".join(["label,path", *(f"x,{name}" for name in names)]))
    parquet.write_table(pyarrow.table({"path": names}), photos / "list.parquet")
    expected = [(str(photos / name), name == "gone.png") for name in names]
    for ending in ("txt", "csv", "parquet"):
        rows = rows_in(embedded(photos / f"list.{ending}", to=ending, errors=1))
        assert [(row["path"], bool(row["error"])) for row in rows] == expected
    assert len(rows_in(embedded(photos / "list.csv", to="csv", errors=1))) == 4
    line = ["--to", tmp_path / "new", "--backbone", deep]
    (photos / "names.csv").write_text("name\na.jpg\n")
    (photos / "long.txt").write_text("a" * 70_000)
    (photos / "damaged.parquet").write_bytes(b"PAR1")
    for name, words in {
        "names.csv": "no column path",
        "long.txt": "a line has more than 65,536",
        "damaged.parquet": "is not a list of images",
        "gone.csv": "there is no list",
    }.items():
        done = command(embed, photos / "a.jpg", photos / name, *line)
        assert words in done.error
    assert not (tmp_path / "new").exists()


def test_names_outside_unicode_are_escaped(embedded, command, deep, photos, tmp_path):
    (photos / "list.txt").write_bytes(b"gone\xff.png\na.jpg\n")
    words = [photos / "list.txt", "--to", f"{tmp_path}/answers/", "--backbone", deep]
    assert command(predict, *words, "--classes", "cat", "dog").status == 1
    for folder in (embedded(photos / "list.txt", errors=1), tmp_path / "answers"):
        row = rows_in(folder)[0]
        assert row["path"] == str(photos / r"gone\udcff.png") and r"gone\udcff.png" in row["error"]


def test_each_tar_becomes_one_file_with_keys(embedded, photos, tmp_path):
    names = ["a.jpg", "b.png", "d.webp"]
    for number in range(2):
        with tarfile.open(tmp_path / f"0{number}.tar", "w") as archive:
            archive.add(photos / "notes.txt", "0/notes.txt")
            for name in names:
                archive.add(photos / name, f"{number}/{name}")
    before = sorted(tmp_path.rglob("*"))
    folder = embedded(tmp_path / "{00..01}.tar")
    assert sorted(set(tmp_path.rglob("*")) - set(before) - set(folder.iterdir())) == [folder]
    of_files = {row["path"]: row for row in rows_in(embedded(photos, to="files"))}
    for number, file in enumerate(sorted(folder.glob("*.parquet"))):
        rows = rows_of(file)
        assert [row["path"] for row in rows] == [f"{number}/{name[0]}" for name in names]
        for name, row in zip(names, rows, strict=True):
            expected = of_files[str(photos / name)]
            assert row["sha256"] == expected["sha256"]
            np.testing.assert_allclose(row["feature"], expected["feature"], atol=1e-3)
    whole = (tmp_path / "01.tar").read_bytes()
    (tmp_path / "02.tar").write_bytes(b"no tar")
    ends = 1, 512 + 10, whole.rindex(b"RIFF") + 9, whole.rindex(b"RIFF") + 1000
    for end in ends:
        (tmp_path / "01.tar").write_bytes(whole[:end])
        rows = rows_in(embedded(tmp_path / "{01..03}.tar", to=f"cut{end}", errors=3))
        faults = [row["error"] for row in rows if row["error"]]
        assert all("is cut short or no tar" in fault for fault in faults)
        assert ["01.tar" in fault for fault in faults] == [True, False, False]


@pytest.mark.parametrize("name", ["img_emb", "metadata"])
def test_nothing_is_written_or_deleted_through_a_link(
    name, embedded, command, deep, photos, tmp_path, monkeypatch
):
    monkeypatch.setattr(sharding, "SHARD", 2)
    layout = "--layout", "clip-retrieval"
    folder = embedded(photos, *layout)
    elsewhere = tmp_path / "elsewhere"
    (folder / name).rename(elsewhere)
    (folder / name).symlink_to(elsewhere)
    before = {file.name: file.read_bytes() for file in elsewhere.iterdir()}
    line = "--to", folder, "--backbone", deep, *layout
    error = command(embed, photos / "a.jpg", *line).error
    assert f"{folder / name} is a link or not a regular file" in error
    assert {file.name: file.read_bytes() for file in elsewhere.iterdir()} == before


def test_a_damaged_file_of_features_is_written_again(embedded, photos, capsys):
    folder = embedded(photos, "--layout", "clip-retrieval")
    file = folder / "img_emb/img_emb_00000.npy"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    embedded(photos, "--layout", "clip-retrieval")
    assert file.read_bytes() == whole


def test_a_reversed_range_of_tars_is_refused(command, deep, tmp_path):
    line = tmp_path / "{9..0}.tar", "--to", tmp_path / "new", "--backbone", deep
    assert "write the smaller one first" in command(embed, *line).error


def test_a_path_in_a_list_of_parquet_has_a_longest_length(command, deep, tmp_path):
    names = pyarrow.array(["a" * 70_000] * 1000).dictionary_encode()
    parquet.write_table(pyarrow.table({"path": names}), tmp_path / "list.parquet")
    line = tmp_path / "list.parquet", "--to", tmp_path / "new", "--backbone", deep
    assert "a path has more than 65,536 characters" in command(embed, *line).error


@pytest.mark.parametrize("layout", embed.LAYOUTS)
def test_features_of_other_images_are_replaced_on_request_alone(
    layout, embedded, command, deep, tiny, photos, tmp_path, monkeypatch
):
    monkeypatch.setattr(sharding, "SHARD", 2)
    folder = embedded(photos, "--layout", layout)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    others = shutil.copytree(photos, tmp_path / "others")
    line = others, "--to", folder, "--backbone", deep, "--layout", layout
    error = command(embed, *line).error
    assert "features of other images, such as" in error and "--replace" in error
    other_model = "--backbone", tiny
    assert "add --replace" in command(embed, photos, *line[1:], *other_model).error
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    command.works(embed, *line, "--replace")
    command.works(embed, others / "a.jpg", *line[1:], *other_model, "--replace")
    rows = [row for file in folder.rglob("*.parquet") for row in rows_of(file)]
    assert [next(iter(row.values())) for row in rows] == [str(others / "a.jpg")]
    assert len([*folder.rglob("*.npy")]) == (layout == "clip-retrieval")
