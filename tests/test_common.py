"""Errors of one line, and files that are written completely or not at all."""

import pickle

import pytest

from common.errors import UsageError, choose, closest
from common.files import checksum, replacing, write_text
from common.start import required_packages


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("no data",), "no data"),
        (("no data", "set --root"), "no data: set --root"),
        (("is damaged", "delete it", "a/b.yaml"), "a/b.yaml: is damaged: delete it"),
    ],
)
def test_usage_error_prints_where_what_and_remedy_in_a_line(arguments, text):
    error = UsageError(*arguments)
    assert str(error) == text


def test_usage_error_keeps_its_fields_when_pickled():
    error = pickle.loads(pickle.dumps(UsageError("is damaged", "delete it", "a.yaml")))
    assert (error.what, error.remedy, error.where) == ("is damaged", "delete it", "a.yaml")


def test_closest_name_ignores_case():
    assert closest("mpl", ["CoOp", "MPL"]) == "MPL"
    assert closest("zzz", ["CoOp", "MPL"]) == ""


def test_choose_names_the_closest_or_all():
    choose("MPL", ["CoOp", "MPL"], "trainer")
    with pytest.raises(UsageError, match="f: there is no trainer 'MPLL': did you mean MPL"):
        choose("MPLL", ["CoOp", "MPL"], "trainer", "f")
    with pytest.raises(UsageError, match="known are CoOp, MPL"):
        choose("zzzz", ["CoOp", "MPL"], "trainer")


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "a.txt"
    write_text(file, "old")
    with pytest.raises(RuntimeError), replacing(file) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert (file.read_text(), [path.name for path in tmp_path.iterdir()]) == ("old", ["a.txt"])


def test_unwritable_folder_is_named(tmp_path):
    with pytest.raises(OSError, match="cannot write"):
        write_text(tmp_path / "missing" / "a.txt", "text")


def test_checksum_is_hexadecimal(tmp_path):
    file, blocks = tmp_path / "a", []
    file.write_bytes(b"abc")
    assert checksum(file, "md5", blocks.append) == "900150983cd24fb0d6963f7d28e17f72"
    assert blocks == [3]


def test_missing_package_ends_in_a_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as stop, required_packages():
        import no_such_package  # noqa: F401
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the package no_such_package is not installed") and "make setup" in line


def test_missing_module_of_the_project_is_a_bug():
    with pytest.raises(ModuleNotFoundError), required_packages():
        import clip.no_such_module  # noqa: F401
