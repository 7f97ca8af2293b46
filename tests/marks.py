import json
import re
from contextlib import contextmanager

import pytest

from common.errors import UsageError


@contextmanager
def one_line(*words, error=UsageError):
    """The block raises this error; its message is one line with these words."""
    with pytest.raises(error) as caught:
        yield caught
    message = str(caught.value)
    assert "\n" not in message and [word for word in map(str, words) if word not in message] == [], message


def thorough_but(quick, values):
    """Parameters `values`; `make test` runs the quick ones, `make test-all` all of them."""
    assert all(value in values for value in quick), f"{quick} are not all among {values}"
    return [pytest.param(value, marks=() if value in quick else pytest.mark.thorough) for value in values]


def golden(metafunc, name, chosen, marks=lambda stem: ()):
    """Parametrize a test that asks for `name` by the contents of those files of `--golden` that are chosen."""
    if name in metafunc.fixturenames:
        folder = metafunc.config.getoption("golden")
        found = {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))}
        if not found:
            raise pytest.UsageError(f"no JSON files in {folder}")
        of_test = {stem: content for stem, content in found.items() if chosen(content)}
        metafunc.parametrize(name, [pytest.param(of_test[stem], id=stem, marks=marks(stem)) for stem in of_test])


def golden_cases(metafunc, *keys):
    """Parametrize a test that asks for one of these keys by its cases: files of `--golden` have a list of them."""
    folder = metafunc.config.getoption("golden")
    for key in keys:
        if key in metafunc.fixturenames:
            cases = [case for file in sorted(folder.glob(f"{key}*.json")) for case in json.loads(file.read_text())[key]]
            names = [case.get("what", f"seed {case.get('seed', case.get('alpha'))}") for case in cases]
            metafunc.parametrize(key, cases, ids=names)


def case_of(figures):
    """The `case` of a golden file: a method with its settings; {} for other files."""
    return figures.get("case", {}) if isinstance(figures, dict) else {}


def tables(text: str) -> list[list[list[str]]]:
    """The tables of a Markdown text: rows of cells, the first of them the column names."""
    blocks = re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE)
    rows = [[line.strip("|").split("|") for line in block.splitlines()] for block in blocks]
    return [[[cell.strip() for cell in row] for row in block if "---" not in row[0]] for block in rows]
