"""The options of benchmarks/measure.py; cells that resume, and the tables of benchmarks of fits."""

import re
from argparse import Namespace

import pytest
from marks import one_line
from pandas import DataFrame

from benchmarks import fits, measure, near_copies
from common.start import ROOT


@pytest.mark.parametrize("page", ["benchmarks/README.md", "benchmarks/measure.py", "Makefile"])
def test_every_command_of_a_page_is_accepted(page):
    words = re.findall(r"benchmarks/measure\.py +(--[^`#\n]*)", (ROOT / page).read_text())
    for options in [*words, *measure.SECTIONS.values()]:
        measure.parser().parse_args(re.sub(r"\$\((\w+)\)", "1", options).split())
    assert words


def test_cells_resume_and_a_table_needs_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fits.torch, "set_num_threads", lambda number: None)
    args = Namespace(output=tmp_path / "new", table=False)

    def cell(args, set, seed):
        return {"accuracy": 50.0 + seed}

    def table(records):
        yield fits.shown(records["accuracy"])

    for seeds in ([1], [1, 2]):
        fits.run(args, "cells.jsonl", fits.grid(set=["birds"], seed=seeds), cell, table)
    assert capsys.readouterr().out.count("{'set': 'birds', 'seed': ") == 2
    args.table = True
    fits.run(args, "cells.jsonl", [], cell, table)
    assert capsys.readouterr().out == "51.5 ± 0.5\n"
    with one_line("other.jsonl has no records: run the same command without --table"):
        fits.run(args, "other.jsonl", [], cell, table)


def test_tables_of_near_copies():
    cells = DataFrame({"copies": [0, 2, 2], "kind": ["none", "turned", "turned"], "scenes": 80})
    cells = cells.assign(truth=[50.0, 48.0, 52.0], estimate=[51.0, 50.0, 51.0], low=40.0)
    cells = cells.assign(high=[60.0, 60.0, 51.5], ungrouped=[None, 70.0, 60.0], sets=91.0)
    errors = [{"50": 40.0}, {}, {"50": 55.0}]
    lines = near_copies.table(cells.assign(confidence=52.0, errors=errors))
    rows, *more = lines
    assert rows.splitlines()[2:] == [
        "| 0 | none | 80.0 | 50.0 | 51.0 | 51.0 | 91.0 | 1 | 1 |",
        "| 2 | turned | 80.0 | 50.0 | 50.5 | 65.0 | 91.0 | 1 | 2 |",
    ]
    assert more[0] == "3 fits: 66.7% of the intervals contain the truth"
    assert more[-1] == "at most 50% wrong: 2 fits promise it, 1 have more; mean 47.5%"


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
