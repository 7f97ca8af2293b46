"""The options and pages of benchmarks/measure.py, and the copies and tables of near_copies.py."""

import json
import re
import sys

import numpy as np
import pytest
from marks import one_line
from pandas import DataFrame
from PIL import Image

from benchmarks import measure, near_copies
from benchmarks.real import __main__ as real
from benchmarks.real import images
from common.start import ROOT


@pytest.mark.parametrize("page", ["benchmarks/README.md", "benchmarks/measure.py", "Makefile"])
def test_every_command_of_a_page_is_accepted(page):
    words = re.findall(r"benchmarks/measure\.py +(--[^`#\n]*)", (ROOT / page).read_text())
    for options in [*words, *measure.SECTIONS.values()]:
        measure.parser().parse_args(re.sub(r"\$\((\w+)\)", "1", options).split())
    assert words


def test_tables_of_near_copies():
    cells = DataFrame({"name": "land", "number": [0, 1, 1], "kind": ["none", "blur", "blur"]})
    cells = cells.assign(truth=[50.0, 48.0, 52.0], estimate=[51.0, 50.0, 51.0], low=40.0)
    cells = cells.assign(high=[60.0, 60.0, 51.5], without_groups=[None, 70.0, 60.0])
    cells = cells.assign(apart=[None, 65.0, 52.0], scenes=80, groups=[80, 80, 84], together=1.0)
    by_kind, *_, total = near_copies.table(cells)
    rows = [" ".join(line.split()) for line in by_kind.splitlines()]
    assert rows[0] == "number kind truth error before contained said share together fits"
    assert rows[1] == "0 none 50.0 1.0 1.0 100.0 0.0 1.00 1.0 1"
    assert rows[2] == "1 blur 50.0 0.5 15.0 50.0 0.5 1.02 1.0 2"
    assert total == "3 fits: 66.7% of the intervals contain the truth"


def test_a_page_has_the_medians_of_its_sections(tmp_path, monkeypatch):
    seconds = iter([2.0, 4.0, 3.0, 5.0, 1.0, 9.0])  # of both forms in three rounds
    monkeypatch.setattr(
        measure, "measured", lambda args, way: {"seconds": next(seconds), "mb": 8.0}
    )
    monkeypatch.setattr(measure, "SECTIONS", {"Steps": "--classes 5 --trainer CoOp"})
    page = tmp_path / "page.md"
    measure.write_page(measure.parser().parse_args(["--page", str(page), "--threads", "1"]))
    title, command, table = page.read_text().split("\n\n")[2:]
    assert title == "## Steps"
    assert command == "`python benchmarks/measure.py --classes 5 --trainer CoOp --rounds 3`"
    assert table.splitlines()[2:] == [
        "| train_step | CoOp | 5 | this | fast | fp32 | 2 | 8 | 1 |",
        "| train_step | CoOp | 5 | this | plain | fp32 | 5 | 8 | 0.5 |",
    ]


def test_a_misspelt_set_prints_one_line(tmp_path):
    with one_line("there is no data set 'stamp': did you mean stamps?"):
        images.build("stamp", [], tmp_path)


@pytest.mark.parametrize("name", ["fashion_mnist", "stamps", "eurosat"])
def test_a_missing_package_prints_one_line(name, tmp_path):
    with one_line("no folder of --sources has"):
        images.build(name, [tmp_path], tmp_path / "sets")


@pytest.fixture
def tones(tmp_path):
    """The output folder of runs with a built data set of three colours."""
    for part, name, place in np.ndindex(2, 3, 4):
        folder = tmp_path / "sets/tones" / ("train", "test")[part] / ("red", "green", "blue")[name]
        folder.mkdir(parents=True, exist_ok=True)
        tone = 10 * place + part
        colour = tuple(200 if channel == name else tone for channel in range(3))
        Image.new("RGB", (32, 32), colour).save(folder / f"{place}.png")
    (tmp_path / "sets/tones/finished").touch()
    return tmp_path


@pytest.mark.thorough
def test_fits_resume_and_a_table_needs_one(tones, monkeypatch, capsys):
    def run(*options):
        argv = ["real", "--output", tones, "--sets", "tones", "--shots", "1", "3", *options]
        monkeypatch.setattr(sys, "argv", list(map(str, argv)))
        real.main()
        return [json.loads(line) for line in (tones / "fits.jsonl").open()]

    with one_line("fits.jsonl has no records: run the same command without --table"):
        run("--table")
    first = run("--seeds", 1)
    both = run("--seeds", 1, 2)
    assert len(first) == 2 and len(both) == 4 and both[:2] == first
    assert all(one["fit"] > 60 and one["recipes"].keys() == real.RECIPES.keys() for one in both)
    assert "estimate" not in both[0] and both[1]["low"] < both[1]["high"]
    capsys.readouterr()
    run("--table")
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[:2] == ["tones", "1"] and "of 2 intervals" in lines[-1]
