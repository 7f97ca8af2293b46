"""Errors of one line that say what there is, and files that are written completely or not at
all.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from marks import one_line

from common import version
from common.errors import UsageError, check_name
from common.files import replacing, scratch, write_bytes, write_text
from common.names import (
    LONGEST,
    MOST,
    as_class_name,
    as_clip_reads,
    check_known_names,
    check_names,
    csv_cell,
    of_csv_cell,
    padded,
    printable,
    width,
)
from common.records import Count, SelectionRecord, read
from common.text import MAX_MARKS, read_json, read_text
from studies.plan import load


def test_marks_and_spaces_between_words_become_a_space_in_a_class_name():
    assert as_class_name(" Red__fox  cub_") == "Red fox cub"
    assert as_clip_reads(" Red__fox  cub_") == "red fox cub"


def test_control_characters_are_printed_as_escapes():
    assert (
        printable("a\x1b]0;t\x07\nb\u202ec\udcff\x9b2J") == r"a\x1b]0;t\x07\nb\u202ec\udcff\x9b2J"
    )
    assert (
        printable("Möwe – 海鸥, می\u200cخواهم 👩\u200d🔬")
        == "Möwe – 海鸥, می\u200cخواهم 👩\u200d🔬"
    )


def test_columns_of_a_table_count_wide_letters_twice_and_accents_not():
    assert [width(text) for text in ("fox", "狐", "キツネ", "e\u0301")] == [3, 2, 6, 1]
    assert padded("狐", 4) == "狐  "


def test_what_else_a_name_may_be_stands_behind_the_question():
    with one_line("did you mean MPL? (a method in a file needs --plugin)"):
        check_name(
            "MPPL", ["MPL", "CoOp"], "trainer", otherwise="a method in a file needs --plugin"
        )


def test_of_many_known_names_the_closest_are_named_after_the_remedy():
    names = [f"method {number}" for number in range(70)]
    with one_line("'xyz': a file needs --plugin; known are 70, such as") as caught:
        check_name("xyz", names, "trainer", otherwise="a file needs --plugin")
    assert str(caught.value).count("method ") == 5


def test_cell_of_a_csv_file_is_no_formula():
    cells = ["=1+1", "+1", "-1", "@a", "a\x1b", "a=1", -1.5, None]
    assert list(map(csv_cell, cells)) == ["'=1+1", "'+1", "'-1", "'@a", r"a\x1b", "a=1", -1.5, None]
    for text in ("=1", "'=1", "''-1", "'a", "'"):
        assert of_csv_cell(csv_cell(text)) == text


WRONG_NAMES = {
    "too many": (["a"] * (MOST + 1), "there are 100,001 class names"),
    "empty": (["a", " "], "a class name is empty"),
    "long": (["a", "b" * (LONGEST + 1)], "'bbb.*'... has 1,001 characters: shorten it"),
    "escape": (["a\x1b[2J"], "has control characters: rename"),
}


@pytest.mark.parametrize("name", WRONG_NAMES)
def test_wrong_class_names_of_a_file_are_refused(name):
    names, words = WRONG_NAMES[name]
    with pytest.raises(UsageError, match=f"^the file: .*{words}"):
        check_known_names(names, "the file")


def test_class_names_of_a_person_are_stripped_and_different():
    assert check_names([" a\tb ", "c"]) == ["a b", "c"]
    with one_line("'a b' is given 2 times"):
        check_names(["a b", "a\nb"])
    check_known_names(["missile", "missile"])  # as in ImageNet


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "a.txt"
    write_text(file, "old")
    with pytest.raises(RuntimeError), replacing(file) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert (file.read_text(), [path.name for path in tmp_path.iterdir()]) == ("old", ["a.txt"])
    with pytest.raises(OSError, match="cannot write"):
        write_text(tmp_path / "missing" / "a.txt", "text")


def test_error_of_the_body_of_a_write_keeps_its_text(tmp_path):
    """It was "cannot write ...; free some space" for a missing input, too."""
    with (
        pytest.raises(FileNotFoundError, match="gone.txt") as caught,
        replacing(tmp_path / "a.txt") as partial,
    ):
        partial.write_text((tmp_path / "gone.txt").read_text())
    assert "cannot write" not in str(caught.value) and not any(tmp_path.iterdir())


def test_threads_can_write_one_file_at_once(tmp_path):
    contents = [bytes([number]) * 100_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda content: [write_bytes(tmp_path / "a", content) for _ in range(20)], contents
            )
        )
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (
        tmp_path / "a"
    ).read_bytes() in contents


def test_scratch_folder_of_a_killed_process_is_deleted_and_one_in_use_is_kept(tmp_path):
    (tmp_path / "work-killed").mkdir()
    (tmp_path / "work-link").symlink_to(tmp_path)
    with scratch(tmp_path, "work-") as one:
        (one / "file").touch()
        with scratch(tmp_path, "work-") as other:
            assert (
                other != one and (one / "file").exists() and not (tmp_path / "work-killed").exists()
            )
        assert not other.exists() and one.stat().st_mode & 0o077 == 0
    assert [path.name for path in tmp_path.iterdir()] == ["work-link"]


@pytest.mark.parametrize(
    ("line", "dirty"),
    [
        ("?? configs/datasets/birds.yaml", False),
        ('?? "configs/my birds.yml"', False),
        (" M configs/a.yaml", True),
    ]
    + [("?? trainers/own.py", True), ("", False)],
)
def test_a_new_yaml_file_in_configs_is_no_change_of_the_code(line, dirty, monkeypatch):
    monkeypatch.setattr(
        version, "git", lambda command, *given: line if command == "status" else "0" * 40
    )
    assert version.source.__wrapped__()["dirty"] is dirty


def test_all_code_of_the_product_counts_as_computing():
    packages = {file.parent.name for file in version.ROOT.glob("*/__init__.py")}
    assert packages - {"benchmarks", "tools", "tests"} <= set(version.COMPUTING)


# Text and JSON files that are damaged or hostile: one line, soon, and nothing read beyond the
# limits.


@pytest.mark.parametrize(
    "place", ["/dev/zero", "/dev/null", "pipe", "folder", "loop", "large", "latin-1"]
)
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
    "key twice": (
        read_json,
        '{"a": 1, "b": {"c": 2, "c": 3}}',
        "is not JSON (a key is there twice)",
    ),
    "study's digits": (load, "seeds: " + "1" * 5000, "is invalid YAML (Exceeds the limit"),
    "study's date": (
        load,
        "root: 2024-01-01\n",
        "root with value <class 'datetime.date'> is not a valid type",
    ),
    "large study": (load, "#" * ((1 << 20) + 1), "is larger than 1,048,576 bytes"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_in_a_line(name, tmp_path):
    read, text, words = HOSTILE[name]
    (tmp_path / "file").write_text(text)
    with one_line(words) as caught:
        read(tmp_path / "file")
    assert str(caught.value).count(f"{tmp_path}/file") == 1


@dataclass
class Recorded:
    images: Count
    choice: SelectionRecord | None = None
    names: tuple[str, ...] = ("a",)


CHOICE = {"dataset": "a", "classes": "all", "split": "val", "images": 2, "what": "epoch"}


def test_a_record_is_read_by_its_type_hints():
    choice = CHOICE | {"test_images": 0, "unknown key": 1}
    found = read(Recorded, {"images": 3, "choice": choice, "names": ["b", "c"]})
    assert found == Recorded(3, SelectionRecord(**CHOICE, test_images=0), ("b", "c"))
    assert read(Recorded, {"images": 3, "choice": None}) == Recorded(3)


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({}, "images is missing"),
        ([], "not a record"),
        ({"images": True}, "images: "),
        ({"images": -1}, "images: "),
        ({"images": 1, "names": ["\n"]}, "names: "),
        ({"images": 1, "choice": CHOICE}, "choice: test_images is missing"),
        ({"images": 1, "choice": CHOICE | {"test_images": 3}}, "choice: 3 of 2 images"),
    ],
)
def test_a_damaged_record_is_refused_by_its_key(content, key):
    with pytest.raises(ValueError, match=key):
        read(Recorded, content)
