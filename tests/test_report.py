"""The page of a study: its content and its isolation."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from finished import finish, finish_all

from experiments.arguments import parse_arguments
from experiments.configuration import setup_cfg
from experiments.studies import command as study_command
from experiments.studies.first_page import overview
from experiments.studies.progress import collect_results
from experiments.studies.render import build_tables
from experiments.studies.study_file import load
from experiments.studies.tables import Summary

pytestmark = pytest.mark.slow

HOSTILE = "<img src=x onerror=alert(1)> 'it' & \"that\"</pre><script>alert(1)</script>"
STUDY = {
    "protocols": ["base2new", "cross_dataset"],
    "trainers": {
        "ZeroshotCLIP": {"config": "small", "cross_dataset": "small_cross_datasets"},
        "CoOp": {
            "config": "small", "cross_dataset": "small_cross_datasets",
            "datasets": {"small_counts": {"OPTIM.LR": 0.5}},
        },
        "MPL": {"config": "small", "cross_dataset": "small_cross_datasets"},
    },
    "datasets": ["small_land", "small_counts"],
    "source": "small_source",
    "targets": ["small_land", "small_counts"],
    "seeds": [1, 2],
}  # fmt: skip


class Element(NamedTuple):
    tag: str
    attributes: dict
    text: list[str]  # without that of inner elements


class Page(HTMLParser):
    """The elements of a page, in order, and the rows of its tables as lists of (text, mark)."""

    def __init__(self, file: Path):
        super().__init__()
        self.file, self.html = file, file.read_text()
        self.elements, self.tables, self.open = [], [], []
        self.feed(self.html)

    def handle_starttag(self, tag, attributes):
        self.elements.append(Element(tag, dict(attributes), []))
        if tag not in ("meta", "img", "source", "wbr"):
            self.open.append(self.elements[-1])
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("strong", "u", "span"):
            self.tables[-1][-1].append(("", tag)) if self.open[-2].tag in ("td", "th") else None

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        if not self.open:
            return
        self.open[-1].text.append(data)
        if self.open[-1].tag in ("strong", "u", "span") and self.open[-2].tag in ("td", "th"):
            before, mark = self.tables[-1][-1][-1]
            self.tables[-1][-1][-1] = (before + data, mark)

    def texts(self, tag: str) -> list[str]:
        return ["".join(element.text) for element in self.elements if element.tag == tag]

    def rows(self, first: str) -> dict[str, list[str]]:
        """The rows of the only table whose first header is `first`: texts by the first cell."""
        (table,) = (table for table in self.tables if table[0][0][0] == first)
        return {row[0][0]: [text for text, _ in row[1:]] for row in table[1:]}


@pytest.fixture
def write(tmp_path):
    """`write(key=value, ...)` -> a study file like STUDY, with other settings."""

    def write(**settings):
        file = tmp_path / "a study.yaml"
        file.write_text(yaml.safe_dump(STUDY | {"output": str(tmp_path / "out")} | settings, sort_keys=False))
        return file

    return write


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


def configure(run, *settings):
    """Give a finished run its config.yaml."""
    (run.folder / "config.yaml").write_text(setup_cfg(parse_arguments([*run.arguments, *map(str, settings)])).dump())


def fail(run, error):
    run.folder.mkdir(parents=True)
    (run.folder / "error.txt").write_text(error + "\n")


def test_page_has_every_table_with_marks_and_notes(write, without_pictures, report):
    study = load(file := write())
    finish_all(study)
    page, summary = report(file), Summary(study, collect_results(study), intervals=True)
    tables = [*overview(summary), *build_tables(summary)]
    assert len(tables) == 6
    marks = ("span", "strong", "u")
    for table, shown in zip(tables, page.tables, strict=False):
        expected = [[(name, "span") for name in table.header]]
        expected += [[(cell.text, marks[cell.rank]) for cell in row] for row in table.rows]
        assert shown == expected
        assert table.title in page.texts("h3")
        assert table.note in page.texts("p")
    assert {mark for table in page.tables for row in table for _, mark in row} == set(marks)


def test_head_has_progress_and_warnings_and_a_failed_run_its_error_and_command(write, without_pictures, report):
    file = write(root="my data")
    *finished, counts, failed = load(file).runs()
    for run in finished:
        finish(run, 50.0, device="A40" if run.seed == 1 else "H100")
    finish(counts, 50.0, device="H100")
    (counts.folder / "error.txt").write_text("an earlier one\n")
    fail(failed, "OSError: the disk is full")
    page = report(file)
    texts = page.texts("p")
    assert texts[0].startswith("41 of 42 runs are done, 0 are running, 1 have failed, 0 are left. Written 20")
    assert texts[1] == "Note: the runs are from 2 devices (A40, H100): each has its own average times."
    assert "OSError: the disk is full" in texts and "an earlier one" not in page.html
    assert "cross_dataset, MPL, small_counts, all classes, 16 shots, seed 2" in page.texts("h3")
    folder, command, source = page.texts("code")
    assert (folder, source) == (str(failed.folder), file.read_text())
    assert command.startswith("python train.py --skip-finished --root 'my data' --output-dir ")


def test_page_opens_with_summary_and_accuracy_time_and_folds_the_rest(write, report):
    finish_all(load(file := write()))
    page = report(file)
    kinds = [element.tag for element in page.elements]
    first = kinds.index("details")
    assert kinds[:first].count("table") == 2 and kinds[:first].count("img") == 1
    assert page.elements[kinds.index("img")].attributes["alt"].startswith("Average accuracy against the average")
    assert kinds.count("details") == kinds.count("summary") == 4
    assert not any("open" in element.attributes for element in page.elements if element.tag == "details")
    names = [element.attributes["id"] for element in page.elements if "id" in element.attributes]
    assert len(set(names)) == len(names)
    links = [element.attributes["href"] for element in page.elements if element.tag == "a"]
    assert len(links) == 4 and {link.removeprefix("#") for link in links} <= set(names)


def test_settings_of_each_method_and_versions_of_all_runs(write, without_pictures, report):
    file = write()
    for run in load(file).runs():
        finish(run, 50.0, device="A40", versions={"torch": "2.6" if run.seed == 1 else "2.7"})
        if run.classes != "new":
            configure(run, "TRAIN.PRINT_FREQ", 5 if (run.seed, run.variant.name) == (2, "MPL") else 20)
    page = report(file)
    settings = page.rows("setting")
    assert settings["TRAINER.NAME"] == ["ZeroshotCLIP", "CoOp", "MPL"]
    assert settings["MODEL.BACKBONE.NAME"] == ["small"] * 3
    assert settings["OPTIM.LR"][1:] == ["0.1; 0.5", "0.02"]
    assert settings["TRAINER.MPL.N_ADD_OP"] == ["-", "-", "2"]
    assert settings["TRAIN.PRINT_FREQ"] == ["20", "20", "20; 5"]
    assert not {"SEED", "OUTPUT_DIR", "DATASET.NAME", "VERBOSE"} & settings.keys()
    assert page.rows("name") == {"device": ["A40"], "torch": ["2.6 (n=21); 2.7 (n=21)"]}


def test_names_and_errors_are_escaped(write, report):
    name = HOSTILE.replace("/", "")
    mpl = {"trainer": "MPL", "config": "small", "overrides": {"OPTIM.LR": 0.5}}
    file = write(protocols="base2new", trainers={"CoOp": "small", name: mpl}, seeds=[1, 2, 3])
    for run in (runs := load(file).runs())[:-1]:
        finish(run, 50.0 + run.seed * (run.variant.name == name), device=HOSTILE, versions={HOSTILE: HOSTILE})
    fail(runs[-1], HOSTILE)
    page = report(file)
    assert page.texts("p").count(HOSTILE) == 1  # the error
    assert [HOSTILE, HOSTILE] in [[text for text, _ in row] for table in page.tables for row in table]
    assert any(f"{name} against the others" in title for title in page.texts("h3"))
    assert {element.tag for element in page.elements}.isdisjoint({"script", "iframe", "link"})
    assert not [key for element in page.elements for key in element.attributes if key.startswith("on")]


def test_page_loads_nothing_and_pictures_have_alternative_text(write, report):
    finish_all(load(file := write()))
    page = report(file)
    addresses = [
        element.attributes[key]
        for element in page.elements
        for key in ("src", "srcset", "href")
        if key in element.attributes
    ]
    assert {re.match("#|data:image/svg\\+xml;base64,", address) is not None for address in addresses} == {True}
    assert not re.search(r"http:|https:|//\w|@import|url\(", re.sub(r"base64,[^\"]+", "", page.html))
    images = [element.attributes for element in page.elements if element.tag == "img"]
    assert len(images) == 2
    assert all(len(image["alt"]) > 40 for image in images)
    (policy,) = (e.attributes["content"] for e in page.elements if "http-equiv" in e.attributes)
    assert policy.startswith("default-src 'none';")
