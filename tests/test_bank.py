"""A bank in place of images: what `tools/embed.py` wrote is read by heads, and no image is."""

import json
import shutil

import numpy as np
import pytest

from inference import bank, embed, predict

REASON = "Parquet needs pyarrow (requirements-parquet.txt)"
pyarrow = pytest.importorskip("pyarrow", reason=REASON)
parquet = pytest.importorskip("pyarrow.parquet", reason=REASON)
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

    def banked(*words):
        folder = tmp_path / "bank"
        how = "--to", folder, "--backbone", deep, "--precision", "float32"
        done = command(embed, *words, *how)
        assert done.status in (0, 1), done.errors
        return folder

    return banked


def answers(command, *words):
    """The answers by path; the faults are on stderr."""
    done = command(predict, *words, "--json")
    assert done.status in (0, 1), done.errors
    return {(row["image"], row["model"]): row["top"] for row in json.loads(done.printed)}


@pytest.mark.parametrize("method", ["CoOp", "TipAdapter", "ProLIP"])
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
    monkeypatch.setattr("inference.shards.SHARD", 2)
    folder = banked(photos)
    shutil.rmtree(photos)
    monkeypatch.setattr(bank, "ROWS", 1)
    line = "--backbone", deep, *NAMES
    done = command(predict, folder, "--to", f"{tmp_path}/answers/", *line)
    assert done.status == 1 and "1 images could not be read" in done.errors[-1]
    written = sorted((tmp_path / "answers").glob("*.parquet"))
    rows = [parquet.read_table(file).to_pylist() for file in written]
    assert [len(part) for part in rows] == [2, 2, 2]
    of_all = [row for part in rows for row in part]
    assert [row["path"] for row in of_all if row["error"]] == [str(photos / "broken.png")]
    expected = answers(command, folder, *line)
    for row in of_all:
        if not row["error"]:
            (top,) = (top for (path, _), top in expected.items() if path == row["path"])
            assert row["answer"] == top[0]["class"]


def test_banks_of_others_are_refused(
    banked, command, deep, tiny, finished, photos, tmp_path, monkeypatch
):
    folder = banked(photos)
    of_tiny = "--backbone", tiny, *NAMES
    of_deep = "--backbone", deep, *NAMES
    assert "of other weights than" in command(predict, folder, *of_tiny).error
    assert "has an image tower of its own" in command(predict, finished("MPL"), folder).error
    assert "banks and images" in command(predict, folder, photos, *of_deep).error
    assert (
        "a bank has features already"
        in command(embed, folder, "--to", tmp_path / "x", *of_deep).error
    )
    own = tmp_path / "own"
    assert command(embed, finished("MPL"), photos, "--to", own).status == 1
    assert "has no features for heads" in command(predict, own, *of_deep).error
    record = json.loads((folder / bank.RECORD).read_text())
    for change, words in {
        "input": "another transform",
        "backbone_sha256": "other weights",
        "form": "no features for heads",
    }.items():
        (folder / bank.RECORD).write_text(json.dumps(record | {change: "another"}))
        assert words in command(predict, folder, *of_deep).error
    (folder / bank.RECORD).write_text(json.dumps(record))
    (folder / "00000.parquet").rename(folder / "00001.parquet")
    assert "lacks files" in command(predict, folder, *of_deep).error
    (folder / "00000.parquet").write_bytes(b"PAR1")
    assert "is damaged" in command(predict, folder, *of_deep).error
