"""The page of a study: its content, its isolation, and its look in a browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from finished import finish, finish_all

from experiments.arguments import parse_arguments
from experiments.configuration import setup_cfg
from experiments.session import cli_main
from experiments.studies import command
from experiments.studies.progress import collect_results
from experiments.studies.render import build_tables, overview
from experiments.studies.study_file import load
from experiments.studies.tables import Summary

pytestmark = pytest.mark.slow

CHROME = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
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
        if tag not in ("meta", "img", "wbr"):
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
    """`write(comment, key=value, ...)` -> a study file like STUDY, with other settings."""

    def write(comment="Two sets.\n# Three methods.", **settings):
        file = tmp_path / "a study.yaml"
        content = yaml.safe_dump(STUDY | {"output": str(tmp_path / "out")} | settings, sort_keys=False)
        file.write_text(f"# {comment}\n{content}")
        return file

    return write


@pytest.fixture
def report(tmp_path, monkeypatch, capsys):
    """`report(file)` -> the Page that is made of a study."""

    def report(file):
        monkeypatch.setattr("sys.argv", ["study", "report", str(file)])
        command.main()
        written = tmp_path / "out/studies" / file.stem / "report.html"
        assert capsys.readouterr().out == f"Written: {written}\n"
        assert list(written.parent.iterdir()) == [written]
        return Page(written)

    return report


@pytest.fixture
def without_pictures(monkeypatch):
    """Reports take a tenth of the time."""
    monkeypatch.setattr("experiments.studies.report.pictures", lambda summary: [])


def runs_of(file):
    return load(file).runs()


def configure(run, *settings):
    """Give a finished run its config.yaml."""
    (run.folder / "config.yaml").write_text(setup_cfg(parse_arguments([*run.arguments, *map(str, settings)])).dump())


def fail(run, error):
    shutil.rmtree(run.folder, ignore_errors=True)
    run.folder.mkdir(parents=True)
    (run.folder / "error.txt").write_text(error + "\n")


def test_page_has_every_table_with_marks_and_notes(write, without_pictures, report):
    file = write()
    finish_all(load(file))
    page = report(file)
    study = load(file)
    tables = build_tables(Summary(study, collect_results(study)))
    assert len(tables) == 5
    tables = [*overview(Summary(study, collect_results(study))), *tables]
    assert [table.title for table in tables[:2]] == ["Summary: base2new", "Summary: cross_dataset"]
    marks = ("span", "strong", "u")
    for table, shown in zip(tables, page.tables, strict=False):
        expected = [[(name, "span") for name in table.header]]
        expected += [[(cell.text, marks[cell.rank]) for cell in row] for row in table.rows]
        assert shown == expected
        assert table.title in page.texts("h3")
        assert table.note in page.texts("p")
    assert {mark for table in page.tables for row in table for _, mark in row} == set(marks)


def test_head_has_comment_progress_and_warnings(write, without_pictures, report):
    file = write()
    for run in (runs := runs_of(file))[:-3]:
        finish(run, 50.0, device="A40" if run.seed == 1 else "H100")
    fail(runs[-1], "UsageError: no")
    page = report(file)
    assert page.texts("h1") == ["Study a study"]
    texts = page.texts("p")
    assert texts[0] == "Two sets. Three methods."
    assert texts[1].startswith("39 of 42 runs are done, 0 are running, 1 have failed, 2 are left. Written 20")
    assert texts[2] == "Note: the runs are from 2 devices (A40, H100): each has its own average times."


def test_page_opens_with_summary_and_accuracy_time_and_folds_the_rest(write, report):
    file = write()
    finish_all(load(file))
    page = report(file)
    kinds = [element.tag for element in page.elements]
    first = kinds.index("details")
    assert kinds[:first].count("table") == 2 and kinds[:first].count("img") == 1
    assert page.elements[kinds.index("img")].attributes["alt"].startswith("Average accuracy against the average")
    assert kinds.count("details") == kinds.count("summary") == 4
    assert not any("open" in element.attributes for element in page.elements if element.tag == "details")


def test_contents_link_to_unique_ids(write, report):
    file = write()
    finish_all(load(file))
    page = report(file)
    names = [element.attributes["id"] for element in page.elements if "id" in element.attributes]
    assert len(set(names)) == len(names)
    links = [element.attributes["href"] for element in page.elements if element.tag == "a"]
    assert len(links) == 5
    assert {link.removeprefix("#") for link in links} <= set(names)


def test_failed_run_shows_error_and_restart_command(write, without_pictures, report, tmp_path):
    file = write(output=str(tmp_path / "out"), root="my data")
    *finished, counts, failed = runs_of(file)
    for run in finished:
        finish(run, 50.0)
    finish(counts, 50.0)
    (counts.folder / "error.txt").write_text("an earlier one\n")
    fail(failed, "OSError: the disk is full")
    page = report(file)
    assert "OSError: the disk is full" in page.texts("p")
    assert "an earlier one" not in page.html
    assert "cross_dataset, MPL, small_counts, all classes, 16 shots, seed 2" in page.texts("h3")
    folder, command, _ = page.texts("code")
    assert folder == str(failed.folder)
    assert command.startswith("python train.py --skip-finished --root 'my data' --output-dir ")


def test_unfinished_runs_are_counted_by_protocol_and_method(write, without_pictures, report):
    file = write()
    for run in runs_of(file):
        if run.variant.name == "CoOp" and run.protocol == "base2new":
            continue
        finish(run, 50.0)
    fail(next(run for run in runs_of(file) if run.variant.name == "CoOp"), "no")
    page = report(file)
    (table,) = (table for table in page.tables if table[0][-1][0] == "left")
    assert [[text for text, _ in row] for row in table] == [
        ["protocol", "method", "done", "running", "failed", "left"],
        ["base2new", "CoOp", "0", "0", "1", "7"],
    ]


def test_settings_of_the_runs_and_their_differences(write, without_pictures, report):
    file = write()
    for run in runs_of(file):
        finish(run, 50.0)
        if run.classes != "new":
            configure(run, "TRAIN.PRINT_FREQ", 5 if (run.seed, run.variant.name) == (2, "MPL") else 20)
    page = report(file)
    shared, own = (
        {row[0][0]: [text for text, _ in row[1:]] for row in table[1:]}
        for table in page.tables
        if table[0][0][0] == "setting"
    )
    assert shared["MODEL.BACKBONE.NAME"] == ["small"]
    assert shared["DATALOADER.TRAIN_X.BATCH_SIZE"] == ["16"]
    assert shared["OPTIM.MAX_EPOCH"] == ["20 (protocol base2new); 2 (protocol cross_dataset)"]
    assert own["OPTIM.LR"] == ["-", "0.1 (dataset small_land, small_source); 0.5 (dataset small_counts)", "0.02"]
    assert own["TRAINER.NAME"] == ["ZeroshotCLIP", "CoOp", "MPL"]
    assert own["TRAINER.*.N_ADD_OP"] == ["-", "-", "2"]
    assert own["TRAIN.PRINT_FREQ"][2] == "20 (seed 1); 5 (seed 2)"
    assert not {"SEED", "OUTPUT_DIR", "DATASET.NAME"} & (shared.keys() | own.keys())
    notes = [text.partition(" Runs of one method differ in ")[2] for text in page.texts("p") if "config.yaml" in text]
    assert "From the config.yaml of 30 finished runs." in page.html
    assert notes == [
        f"{keys}; the runs with each value are in brackets."
        for keys in ("OPTIM.MAX_EPOCH", "OPTIM.LR, TRAIN.PRINT_FREQ")
    ]
    assert file.read_text() in page.texts("code")


def test_differing_versions_are_counted(write, without_pictures, report):
    file = write(protocols="base2new", trainers={"MPL": "small"}, datasets=["small_land"])
    for run, torch in zip(runs_of(file), ("2.6", "2.7", "2.7", "2.7"), strict=True):
        date = f"2026-11-0{run.seed}T10:00:00+00:00"
        finish(run, 50.0, device="A40", date=date, versions={"python": "3.11", "torch": torch})
    assert report(file).rows("name") == {
        "device": ["A40"],
        "python": ["3.11"],
        "torch": ["2.7 (n=3); 2.6 (n=1)"],
        "finished": ["2026-11-01 10:00:00 UTC to 2026-11-02 10:00:00 UTC"],
    }


def test_names_and_errors_are_escaped(write, report):
    name = HOSTILE.replace("/", "")
    mpl = {"trainer": "MPL", "config": "small", "overrides": {"OPTIM.LR": 0.5}}
    file = write(HOSTILE, protocols="base2new", trainers={"CoOp": "small", name: mpl}, seeds=[1, 2, 3])
    for run in (runs := runs_of(file))[:-1]:
        finish(run, 50.0 + run.seed * (run.variant.name == name), device=HOSTILE, versions={HOSTILE: HOSTILE})
    fail(runs[-1], HOSTILE)
    page = report(file)
    assert page.texts("p").count(HOSTILE) == 2  # the comment, the error
    assert [HOSTILE, HOSTILE] in [[text for text, _ in row] for table in page.tables for row in table]
    assert any(f"{name} against the others" in title for title in page.texts("h3"))
    assert {element.tag for element in page.elements}.isdisjoint({"script", "iframe", "link"})
    assert not [key for element in page.elements for key in element.attributes if key.startswith("on")]


def test_page_loads_nothing_and_pictures_have_alternative_text(write, report):
    file = write()
    finish_all(load(file))
    page = report(file)
    addresses = [
        element.attributes[key] for element in page.elements for key in ("src", "href") if key in element.attributes
    ]
    assert {re.match("#|data:image/svg\\+xml;base64,", address) is not None for address in addresses} == {True}
    assert not re.search(r"http:|https:|//\w|@import|url\(", re.sub(r"base64,[^\"]+", "", page.html))
    images = [element.attributes for element in page.elements if element.tag == "img"]
    assert len(images) == 3
    assert all(len(image["alt"]) > 40 for image in images)
    (policy,) = (e.attributes["content"] for e in page.elements if "http-equiv" in e.attributes)
    assert policy.startswith("default-src 'none';")


def test_no_page_without_results(write, ended, monkeypatch, tmp_path):
    file = write()
    fail(runs_of(file)[0], "no")
    monkeypatch.setattr("sys.argv", ["study", "report", str(file)])
    status, _, errors = ended(lambda: cli_main(command.main))
    assert (status, len(errors)) == (2, 1)
    assert "no run of this study is finished" in errors[0]
    assert not (tmp_path / "out/studies").exists()


# The page in a narrow and a wide frame; the script writes its measurements to <output>.
MEASURE = """<!doctype html>
<iframe src="report.html" width="360" height="740"></iframe>
<iframe src="report.html" width="1280" height="740"></iframe>
<output></output><script>
const measure = frame => {
  const page = frame.contentDocument;
  page.querySelectorAll("details").forEach(part => part.open = true);
  const root = page.documentElement, left = node => node.getBoundingClientRect().left;
  const wide = [...page.querySelectorAll(".scroll")].filter(box => box.scrollWidth > box.clientWidth);
  wide.forEach(box => box.scrollLeft = 100);
  return {
    overflow: root.scrollWidth - root.clientWidth,
    images: [...page.images].map(image => [image.naturalWidth, image.clientWidth]),
    cells: [...page.querySelectorAll("td, th")].filter(cell => cell.clientWidth * cell.clientHeight > 0).length,
    wide: wide.length,
    stuck: wide.every(box => [...box.querySelectorAll("th:first-child")].every(
      cell => left(cell) == left(box) && cell.clientWidth < box.clientWidth / 2)),
  };
};
onload = () => {
  const measured = [...document.querySelectorAll("iframe")].map(measure);
  document.querySelector("output").textContent = JSON.stringify(measured);
};
</script>"""


def test_browser_shows_the_page_without_network(write, report):
    if not CHROME:
        pytest.skip("no chromium or google-chrome here (Debian: chromium)")
    long = {"trainer": "MPL", "config": "small", "overrides": {"OPTIM.LR": 0.5}}
    file = write(trainers=STUDY["trainers"] | {"a_method_whose_name_is_wider_than_a_phone_is": long}, seeds=[1])
    *finished, failed = runs_of(file)
    for run in finished:
        finish(run, 50.0)
        configure(run)
    fail(failed, "OSError: " + 50 * "x")
    page = report(file)
    measuring = page.file.with_name("measure.html")
    measuring.write_text(MEASURE)
    command = [CHROME, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={file.parent / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += ["--enable-logging=stderr", "--dump-dom", measuring.as_uri()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in ended.stderr
    measured = json.loads(re.search("<output>(.*)</output>", ended.stdout)[1])
    for width, frame in zip((360, 1280), measured, strict=True):
        assert frame["overflow"] == 0
        assert len(frame["images"]) == 3
        assert all(natural > 0 and (width == 360 or 0 < shown <= width) for natural, shown in frame["images"])
        assert all(shown >= 0.99 * natural for natural, shown in frame["images"] if width == 360)  # legible, to scroll
        assert frame["cells"] == sum(len(row) for table in page.tables for row in table) > 200
        assert frame["stuck"]
    assert measured[0]["wide"] > measured[1]["wide"]
