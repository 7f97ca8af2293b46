"""Errors of one line that say what there is, and files that are written completely or not at all."""

import os
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from drawn import arguments

from common.errors import UsageError
from common.files import PARTIAL, check_folder, replacing, scratch, what_exists, write_bytes, write_text
from common.names import LONGEST, MOST, check_known_names, check_names, check_template, csv_cell, printable
from common.start import ROOT, required_packages


def test_usage_error_prints_where_what_and_remedy_in_a_line():
    error = pickle.loads(pickle.dumps(UsageError("is damaged", "delete it", "a/b.yaml")))
    assert str(error) == "a/b.yaml: is damaged: delete it"
    assert str(UsageError("a.yaml is damaged", where="a.yaml")) == "a.yaml is damaged"


def test_control_characters_are_printed_as_escapes():
    assert printable("a\x1b]0;t\x07\nb\u202ec\udcff\x9b2J") == r"a\x1b]0;t\x07\nb\u202ec\udcff\x9b2J"
    assert printable("Möwe – 海鸥, می\u200cخواهم 👩\u200d🔬") == "Möwe – 海鸥, می\u200cخواهم 👩\u200d🔬"


def test_cell_of_a_csv_file_is_no_formula():
    cells = ["=1+1", "+1", "-1", "@a", "a\x1b", "a=1", -1.5, None]
    assert list(map(csv_cell, cells)) == ["'=1+1", "'+1", "'-1", "'@a", r"a\x1b", "a=1", -1.5, None]


WRONG_NAMES = {
    "none": ([], "there are no class names: give 1 to 100,000"),
    "too many": (["a"] * (MOST + 1), "there are 100,001 class names"),
    "empty": (["a", " "], "a class name is empty"),
    "no text": (["a", 1], "a class name is empty or not a text"),
    "long": (["a", "b" * (LONGEST + 1)], "'bbb.*'... has 1,001 characters: shorten it"),
    "escape": (["a\x1b[2J"], "has control characters: rename"),
    "right to left": (["a\u202eb"], "has control characters"),
}


@pytest.mark.parametrize("name", WRONG_NAMES)
def test_wrong_class_names_of_a_file_are_refused(name):
    names, words = WRONG_NAMES[name]
    with pytest.raises(UsageError, match=f"^the file: .*{words}"):
        check_known_names(names, "the file")


def test_class_names_of_a_person_are_stripped_and_different():
    assert check_names([" a\tb ", "c"]) == ["a b", "c"]
    with pytest.raises(UsageError, match="'a b' is given 2 times"):
        check_names(["a b", "a\nb"])
    check_known_names(["missile", "missile"])  # as in ImageNet


@pytest.mark.parametrize("template", ["a photo", "{}" * 5, "{}" + "a" * LONGEST, "a {}\n"])
def test_template_without_one_place_for_the_class_name_is_refused(template):
    check_template("a photo of a {}.")
    with pytest.raises(UsageError, match="^config.json: the template .*: write one such as 'a photo of a {}.'$"):
        check_template(template, "config.json")


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
    with pytest.raises(FileNotFoundError, match="gone.txt") as caught, replacing(tmp_path / "a.txt") as partial:
        partial.write_text((tmp_path / "gone.txt").read_text())
    assert "cannot write" not in str(caught.value) and not any(tmp_path.iterdir())


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """After a power cut an empty results.json could stand beside a whole checkpoint."""
    order, fsync, replace = [], os.fsync, os.replace

    def noted_fsync(descriptor):
        order.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def noted_replace(*paths):
        order.append("replace")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write_text(tmp_path / "results.json", "{}")
    partial, *rest = order
    assert re.fullmatch(PARTIAL, partial) and rest == ["replace", tmp_path.name]


def test_threads_that_write_one_file_do_not_disturb_each_other(tmp_path):
    contents = [bytes([number]) * 100_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: [write_bytes(tmp_path / "a", content) for _ in range(20)], contents))
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() in contents


def test_scratch_folder_of_a_killed_process_is_deleted_and_one_in_use_is_kept(tmp_path):
    (tmp_path / "work-killed").mkdir()
    (tmp_path / "work-link").symlink_to(tmp_path)
    with scratch(tmp_path, "work-") as one:
        (one / "file").touch()
        with scratch(tmp_path, "work-") as other:
            assert other != one and (one / "file").exists() and not (tmp_path / "work-killed").exists()
        assert not other.exists() and one.stat().st_mode & 0o077 == 0
    assert [path.name for path in tmp_path.iterdir()] == ["work-link"]


def test_new_scratch_folder_is_not_deleted_as_abandoned(tmp_path):
    """Between the creation of a folder and its lock, another process could delete it."""

    def use(_):
        with scratch(tmp_path, "work-") as folder:
            (folder / "file").touch()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(800)))
    assert not any(tmp_path.iterdir())


def test_missing_package_ends_in_a_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as stop, required_packages():
        import no_such_package  # noqa: F401
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the package no_such_package is not installed") and "make setup" in line


def test_missing_folder_says_what_is_there(tmp_path):
    (tmp_path / "output/imagenet").mkdir(parents=True)
    asked = tmp_path / "output/eurosat/MPL/seed1"
    assert what_exists(asked) == f"its path exists up to {tmp_path}/output, which holds imagenet"
    with pytest.raises(UsageError, match=f"no folder {asked}: its path exists up to {tmp_path}/output, .*; check it"):
        check_folder(asked, "no folder", "check it")
    assert what_exists(Path("/nope/*/[")) == "its path exists up to /"
    assert what_exists(Path("nope/train")) == "its path exists up to ."


def test_missing_data_is_reported_without_torch(tmp_path):
    argv = ["train.py", *arguments(tmp_path / "none", "small", tmp_path / "out")]
    code = f"import sys, train\nsys.argv = {argv}\n"
    code += "try: train.main()\nexcept ValueError as error: print('torch' in sys.modules, error)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False ")
    assert done.stdout.endswith(f"get it by: python tools/prepare.py eurosat --root {tmp_path}/none\n")
