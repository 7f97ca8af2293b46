"""benchmarks/measure.py: a record for each way, of two checkouts and of official code."""

import re

import pytest

from benchmarks import measure
from common.start import ROOT


@pytest.mark.parametrize("page", ["benchmarks/README.md", "benchmarks/measure.py", "Makefile"])
def test_every_command_of_a_page_is_accepted(page):
    words = re.findall(r"benchmarks/measure\.py +(--[^`#\n]*)", (ROOT / page).read_text())
    for options in [*words, *measure.SECTIONS.values()]:
        measure.parser().parse_args(re.sub(r"\$\((\w+)\)", "1", options).split())
    assert words
