"""The pages are easy to read: short sentences, short cells of tables, no words that only we know."""

import re
from pathlib import Path

import pytest

from common.start import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if page.name != "configuration.md"]  # docs/reference.py writes it
WORDS = 30  # of a sentence
CELL = 25
PRIVATE = r"\bscenes?\b|\bbeside\b|\breads? names\b|\banew\b|\bmend(s|ed)?\b|second opinion"


def plain(text: str) -> str:
    """A Markdown text without the addresses of its links; code and formulas are one word."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]*`", "x", text)
    return re.sub(r"\*[^*\s][^*]*[=~·][^*]*\*", "x", text)


def count(text: str) -> int:
    return len(re.findall(r"[\w'’-]*\w", text))


def sentences(text: str) -> list[str]:
    """The sentences of a page outside its code, tables, headings and pictures; an item of a list is
    at least one.
    """
    text = re.sub(r"<!--.*?-->|^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^(#|\||!\[).*$", "", text, flags=re.MULTILINE)
    text = plain(re.sub(r"^\s*(-|\d+\.) ", "\n\n", text, flags=re.MULTILINE))
    parts = re.split(r"\n\s*\n", text)
    return [one for part in parts for one in re.split(r"(?<=[.!?])[*)]*\s+(?=[^a-z]|x\b)", part)]


def cells(text: str) -> list[str]:
    """The cells of a page's tables, but not those that list methods and their numbers of cases."""
    text = re.sub(r"<!-- table: verified -->\n\n(\|.*\|\n)+", "", text)
    lines = re.findall(r"^\|(.*)\|$", text, re.MULTILINE)
    return [re.sub(r"\bx\b", "", plain(cell)) for line in lines for cell in line.split("|")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_sentences_and_cells_are_short(page: Path):
    text = page.read_text()
    assert [one for one in sentences(text) if count(one) > WORDS] == []
    assert [cell for cell in cells(text) if count(cell) > CELL] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_has_known_words(page: Path):
    found = [one for one in sentences(page.read_text()) if re.search(PRIVATE, one)]
    assert found == []
