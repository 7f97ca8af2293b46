"""The page of a study: its content and its isolation."""

import re
from html import unescape
from pathlib import Path

import pytest
from finished import finish, finish_all, summarise, tables_of

from experiments.studies import command as study_command
from experiments.studies.study_file import load

pytestmark = pytest.mark.slow

HOSTILE = "<img src=x onerror=alert(1)> 'it' & \"that\"</pre><script>alert(1)</script>"
CONFIG = {"config": "small", "cross_dataset": "small_cross_datasets"}
STUDY = {
    "protocols": ["base2new", "cross_dataset"],
    "trainers": {
        "CoOp": CONFIG | {"datasets": {"small_counts": {"OPTIM.LR": 0.5}}},
        "MPL": CONFIG,
        "ZeroshotCLIP": CONFIG,
    },
    "datasets": ["small_land", "small_counts"],
    "source": "small_source",
    "targets": ["small_land", "small_counts"],
    "seeds": [1, 2],
}


class Page:
    """A page; its tables are lists of rows of (text, mark)."""

    def __init__(self, file: Path):
        self.html = file.read_text().replace("<wbr>", "")
        tables = [re.findall(r"<tr>(.*?)</tr>", table, re.S) for table in self.inner("table")]
        cell = r"<(span|strong|u)>(.*?)</\1>"
        self.tables = [
            [[(unescape(text), mark) for mark, text in re.findall(cell, row, re.S)] for row in rows] for rows in tables
        ]

    def inner(self, tag: str) -> list[str]:
        return re.findall(rf"<{tag}(?: [^>]*)?>(.*?)</{tag}>", self.html, re.S)

    def texts(self, tag: str) -> list[str]:
        return [unescape(re.sub("<[^>]+>", "", inner)) for inner in self.inner(tag)]

    def attributes(self, name: str) -> list[str]:
        return [unescape(value) for value in re.findall(rf'<[^>]* {name}="([^"]*)"', self.html)]


@pytest.fixture
def write(study_file):
    """`write(key=value, ...)` -> a study file like STUDY, with other settings."""
    return lambda **settings: study_file("out", **STUDY | settings)


@pytest.fixture
def report(tmp_path, capsys):
    """`report(file)` -> the Page that is made of a study."""

    def report(file):
        study_command.main(["report", str(file)])
        written = tmp_path / "out/studies" / file.stem / "report.html"
        assert capsys.readouterr().out == f"Written: {written}\n"
        assert list(written.parent.iterdir()) == [written]
        return Page(written)

    return report


@pytest.fixture
def without_pictures(monkeypatch):
    """Reports take a tenth of the time."""
    monkeypatch.setattr("experiments.studies.report.pictures", lambda summary: [])


def fail(run, error):
    run.folder.mkdir(parents=True)
    (run.folder / "error.txt").write_text(error + "\n")


def test_page_has_every_table_with_marks_and_notes(write, without_pictures, report):
    study = load(file := write())
    finish_all(study)
    page, tables = report(file), tables_of(summarise(study, intervals=True)).values()
    assert len(tables) == 6
    marks = ("span", "strong", "u")
    for table, shown in zip(tables, page.tables, strict=False):
        expected = [[(name, "span") for name in table.header]]
        expected += [[(cell.text, marks[cell.rank]) for cell in row] for row in table.rows]
        assert shown == expected
        assert table.title in page.texts("h3")
        assert table.note in page.texts("p")
    assert {mark for table in page.tables for row in table for _, mark in row} == set(marks)


def test_page_opens_with_summary_and_accuracy_time_folds_the_rest_and_loads_nothing(write, report):
    finish_all(load(file := write()))
    page = report(file)
    opening = page.html.partition("<details")[0]
    assert opening.count("<table>") == 2 and opening.count("<img") == 1
    first, other = page.attributes("alt")
    assert first.startswith("Average accuracy against the average") and len(other) > 40
    assert page.html.count("<details>") == page.html.count("<summary>") == 4
    names, links = page.attributes("id"), page.attributes("href")
    assert len(set(names)) == len(names)
    assert len(links) == 4 and {link.removeprefix("#") for link in links} <= set(names)
    addresses = page.attributes("src")
    assert addresses and all(address.startswith("data:image/svg+xml;base64,") for address in addresses)
    assert not re.search(r"http:|https:|//\w|@import|url\(", re.sub(r"base64,[^\"]+", "", page.html))
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="(.*?)"', page.html)
    assert policy.startswith("default-src 'none';")


def test_names_and_errors_are_escaped(write, without_pictures, report):
    name = HOSTILE.replace("/", "")
    mpl = {"trainer": "MPL", "config": "small", "overrides": {"OPTIM.LR": 0.5}}
    file = write(protocols="base2new", trainers={"CoOp": "small", name: mpl}, seeds=[1, 2, 3])
    for run in (runs := load(file).runs())[:-1]:
        finish(run, 50.0 + run.seed * (run.variant.name == name), device=HOSTILE, versions={HOSTILE: HOSTILE})
    fail(runs[-1], HOSTILE)
    page = report(file)
    assert page.texts("p").count(HOSTILE) == 1  # the error
    assert page.texts("p")[0].startswith("23 of 24 runs are done, 0 are running, 1 have failed, 0 are left. Written 20")
    folder, start, _ = page.texts("code")
    assert folder == str(runs[-1].folder) and start.startswith("python train.py --skip-finished ")
    assert [HOSTILE, HOSTILE] in [[text for text, _ in row] for table in page.tables for row in table]
    assert any(f"{name} against the others" in title for title in page.texts("h3"))
    assert not re.search(r"<(script|iframe|link)|<[^>]* on\w+=", page.html)
