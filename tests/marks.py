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
    assert (
        "\n" not in message and [word for word in map(str, words) if word not in message] == []
    ), message


def parquet_library():
    """pyarrow with its module of Parquet files; without it, the test is skipped."""
    reason = "Parquet needs pyarrow (requirements-parquet.txt)"
    pytest.importorskip("pyarrow.parquet", reason=reason)
    return pytest.importorskip("pyarrow", reason=reason)


def of_json(file):
    """The content of a JSON file."""
    return json.loads(file.read_text())


def to_json(file, content):
    """Write a JSON file."""
    file.write_text(json.dumps(content))


def thorough_but(quick, values):
    """Parameters `values`; `make test` runs the quick ones, `make test-all` all of them."""
    assert all(value in values for value in quick), f"{quick} are not all among {values}"
    return [
        pytest.param(value, marks=() if value in quick else pytest.mark.thorough)
        for value in values
    ]


def golden_files(folder, chosen):
    """The contents of those JSON files of a folder that are chosen by them, by their names without
    `.json`.
    """
    found = {file.stem: of_json(file) for file in sorted(folder.glob("*.json"))}
    if not found:
        raise pytest.UsageError(f"no JSON files in {folder}")
    return {stem: content for stem, content in found.items() if chosen(content)}


def golden(metafunc, name, chosen, marks=lambda stem: ()):
    """Parametrize a test that asks for `name` by those files of `--golden` that are chosen by their
    contents.
    """
    if name in metafunc.fixturenames:
        files = golden_files(metafunc.config.getoption("golden"), chosen)
        cases = []
        for stem, content in files.items():
            own = marks(stem)
            # Which `-k golden` selects
            both = [pytest.mark.golden, own] if own else pytest.mark.golden
            cases.append(pytest.param(content, id=stem, marks=both))
        metafunc.parametrize(name, cases)


def golden_cases(metafunc, *keys):
    """Parametrize a test that asks for one of these keys by its cases: files of `--golden` have a
    list of them.
    """
    for key in keys:
        if key in metafunc.fixturenames:
            files = golden_files(
                metafunc.config.getoption("golden"), lambda content, key=key: key in content
            )
            cases = [case for content in files.values() for case in content[key]]
            names = [
                case.get("what", f"seed {case.get('seed', case.get('alpha'))}") for case in cases
            ]
            metafunc.parametrize(
                key, [pytest.param(case, marks=pytest.mark.golden) for case in cases], ids=names
            )


def case_of(figures):
    """The `case` of a golden file: a method with its settings; {} for other files."""
    return figures.get("case", {}) if isinstance(figures, dict) else {}


def tables(text: str) -> list[list[list[str]]]:
    """The tables of a Markdown text: rows of cells, the first of them the column names."""
    blocks = re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE)
    rows = [[line.strip("|").split("|") for line in block.splitlines()] for block in blocks]
    return [
        [[cell.strip() for cell in row] for row in block if "---" not in row[0]] for block in rows
    ]
