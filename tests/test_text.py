"""Text and JSON files that are damaged or hostile: one line, soon, and nothing read beyond the limits."""

import os
import time

import pytest
from drawn import make_cfg, write_eurosat

from common.errors import UsageError
from common.text import MAX_MARKS, read_json, read_text
from datasets import DatasetError
from datasets.eurosat import EuroSAT
from experiments.results import read_results
from experiments.studies.study_file import load

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)


def special(folder):
    """Files that are not text files of some bytes."""
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "large").write_bytes(b"#" * 1001)
    (folder / "latin-1").write_bytes(b"caf\xe9")
    return folder


@pytest.mark.parametrize("place", ["/dev/zero", "/dev/full", "/dev/null", "pipe", "folder", "loop", "large", "latin-1"])
@pytest.mark.parametrize("read", [read_text, read_json])
def test_only_regular_text_files_of_some_size_are_read(read, place, tmp_path):
    with pytest.raises(UsageError) as caught:
        read(special(tmp_path) / place, 1000)
    assert str(tmp_path / place) in str(caught.value) and "\n" not in str(caught.value)


def test_text_is_read_without_a_byte_order_mark(tmp_path):
    (tmp_path / "a.txt").write_text("é", encoding="utf-8-sig")
    assert read_text(tmp_path / "a.txt") == "é"
    assert read_text(tmp_path / "a.txt", most=5) == "é"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "is not JSON"),
        ('{"a": ' * 100_000, "is not JSON"),
        ("[" + "0," * MAX_MARKS + "0]", "has too many values"),
        ("1" * 5000, "is not JSON"),
        ("NaN", "is not JSON (NaN is not a number of JSON)"),
        ("[-Infinity]", "is not JSON (-Infinity is not a number of JSON)"),
        ("", "is not JSON"),
    ],
    ids=["deep list", "deep mapping", "many values", "many digits", "NaN", "infinite", "empty"],
)
def test_hostile_json_is_refused_in_a_line(text, words, tmp_path):
    (tmp_path / "a.json").write_text(text)
    start = time.monotonic()
    with pytest.raises(UsageError) as caught:
        read_json(tmp_path / "a.json")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert time.monotonic() - start < 10


# The readers of datasets, results and studies


@pytest.mark.parametrize("name", ["a\nb", "a\0", "caf\udce9", "\ud800", "\x1b[31ma"], ids=ascii)
def test_a_class_name_is_printable(name, tiny, tmp_path):
    write_eurosat(tmp_path, ["forest", name])
    with pytest.raises(DatasetError) as caught:
        EuroSAT(make_cfg("CoOp", tmp_path, tiny, tmp_path / "out"))
    assert f"the name {name!r} of label 1 cannot be printed on a line" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[" * 100_000, "is damaged ("),
        ('{"train": NaN}', "is not JSON (NaN is not a number of JSON)"),
        ('{"train": [["1/a.png", ' + "1" * 5000 + ', "b"]]}', "is not JSON (Exceeds the limit"),
    ],
    ids=["deep", "NaN", "many digits"],
)
def test_hostile_split_file_is_refused_in_a_line(content, words, tiny, tmp_path):
    write_eurosat(tmp_path, ["forest"]).write_text(content)
    with pytest.raises(DatasetError, match="python tools/prepare.py eurosat") as caught:
        EuroSAT(make_cfg("CoOp", tmp_path, tiny, tmp_path / "out"))
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "[1]",
        '{"accuracy": NaN}',
        '{"accuracy": 1e999}',
        '{"accuracy": "high"}',
        '{"accuracy": [1]}',
        '{"accuracy": 50, "train_seconds": "x"}',
        '{"accuracy": 50, "device": ["cpu"]}',
        '{"accuracy": ' + "1" * 1000 + "}",
        '{"seed": 1}',
        "[" * 100_000,
    ],
    ids=lambda content: content[:40],
)
def test_damaged_results_are_named(content, tmp_path):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UsageError, match=f"^{tmp_path}/results.json is damaged: delete it and start its run again$"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "is invalid YAML (more than 20,000 values"),
        ("trainers: " + "[" * 100_000, "line 1 is invalid YAML"),
        ("trainers: {MPL: small}\nseeds: !!int x\n", "is invalid YAML (invalid literal for int()"),
        ("seeds: " + "1" * 5000, "line 1 is invalid YAML (not a number or date of at most 100 characters)"),
        ("root: 2024-01-01\n", "Key root with value <class 'datetime.date'> is not a valid type"),
        ("a: !!python/object/apply:os.system [ls]\n", "line 1 is invalid YAML (could not determine a constructor"),
        ("#" * ((1 << 20) + 1), "is larger than 1,048,576 bytes"),
    ],
    ids=["anchor bomb", "deep", "no int", "many digits", "date", "Python object", "large"],
)
def test_hostile_study_file_is_refused_in_a_line(text, words, tmp_path):
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        load(tmp_path / "study.yaml")
    assert str(caught.value).count(f"{tmp_path}/study.yaml") == 1
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["/dev/zero", "pipe", "folder"])
def test_study_file_is_a_regular_file(place, tmp_path):
    with pytest.raises(UsageError, match=str(tmp_path / place)):
        load(special(tmp_path) / place)


def test_anchors_of_a_study_file_are_read(tmp_path):
    (tmp_path / "study.yaml").write_text(
        "trainers:\n"
        "  CoOp: {config: small, overrides: &quick {OPTIM.MAX_EPOCH: 3, OPTIM.LR: 0.1}}\n"
        "  MPL: {config: small, overrides: *quick}\n"
        "datasets: [small_land]\n"
    )
    variants = load(tmp_path / "study.yaml").variants
    assert {variant.overrides for variant in variants} == {("OPTIM.MAX_EPOCH", "3", "OPTIM.LR", "0.1")}
