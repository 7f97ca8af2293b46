"""The options and pages of benchmarks/measure.py, and the copies and tables of near_copies.py."""

import re

import numpy as np
import pytest
from pandas import DataFrame
from PIL import Image

from benchmarks import measure, near_copies
from common.start import ROOT


@pytest.mark.parametrize("page", ["benchmarks/README.md", "benchmarks/measure.py", "Makefile"])
def test_every_command_of_a_page_is_accepted(page):
    words = re.findall(r"benchmarks/measure\.py +(--[^`#\n]*)", (ROOT / page).read_text())
    for options in [*words, *measure.SECTIONS.values()]:
        measure.parser().parse_args(re.sub(r"\$\((\w+)\)", "1", options).split())
    assert words


def test_each_kind_of_near_copy_has_the_size_of_its_image_and_other_pixels():
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    for change in (near_copies.KINDS | near_copies.OTHERS).values():
        copy = change(image, rng)
        assert copy.size == image.size and copy.mode == "RGB"
        assert np.any(np.asarray(copy) != np.asarray(image))


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
