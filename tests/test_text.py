"""Text and JSON files that are damaged or hostile: one line, soon, and nothing read beyond the limits."""

import os

import pytest
from marks import one_line

from common.text import MAX_MARKS, read_json, read_text
from experiments.studies.study_file import load


@pytest.mark.parametrize("place", ["/dev/zero", "/dev/null", "pipe", "folder", "loop", "large", "latin-1"])
@pytest.mark.parametrize("read", [read_text, read_json])
def test_only_regular_text_files_of_some_size_are_read(read, place, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "large").write_bytes(b"#" * 1001)
    (tmp_path / "latin-1").write_bytes(b"caf\xe9")
    with one_line(tmp_path / place):
        read(tmp_path / place, 1000)


def test_text_is_read_without_a_byte_order_mark(tmp_path):
    (tmp_path / "a.txt").write_text("é", encoding="utf-8-sig")
    assert read_text(tmp_path / "a.txt", most=5) == "é"


HOSTILE = {
    "deep": (read_json, "[" * 100_000, "is not JSON"),
    "many values": (read_json, "[" + "0," * MAX_MARKS + "0]", "has too many values"),
    "many digits": (read_json, "1" * 5000, "is not JSON"),
    "NaN": (read_json, "NaN", "is not JSON (NaN is not a number of JSON)"),
    "key twice": (read_json, '{"a": 1, "b": {"c": 2, "c": 3}}', "is not JSON (a key is there twice)"),
    "study's digits": (load, "seeds: " + "1" * 5000, "is invalid YAML (Exceeds the limit"),
    "study's date": (load, "root: 2024-01-01\n", "root with value <class 'datetime.date'> is not a valid type"),
    "large study": (load, "#" * ((1 << 20) + 1), "is larger than 1,048,576 bytes"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_in_a_line(name, tmp_path):
    read, text, words = HOSTILE[name]
    (tmp_path / "file").write_text(text)
    with one_line(words) as caught:
        read(tmp_path / "file")
    assert str(caught.value).count(f"{tmp_path}/file") == 1
