"""The tables of a study: their numbers, their page, and a snapshot of their text."""

import dataclasses
import json
import os
import re
from html import unescape
from pathlib import Path

import pandas as pd
import pytest
from finished import choice, different, finish, phase, study_of, summarise, tables_of
from scipy import stats

from common.start import ROOT
from studies import command as study_command
from studies.plan import Study, load
from studies.report import headlines, versions
from studies.reproduce import compared_with_authors
from studies.study import VALIDATION, SearchRule, Variant
from studies.tables import holm
from studies.write import Cell, Table, latex, markdown

pytestmark = pytest.mark.slow

TWO = ("CoOp", "MPL")
PAIR = ("small_land", "small_counts")


@pytest.fixture
def of_the_paper(tmp_path):
    """`of_the_paper(name, **changed)` -> Summary of a study of studies/, finished with two
    seeds.
    """

    def of_the_paper(name, **changed):
        study = load(ROOT / f"studies/{name}.yaml", settings=False)
        return summarise(
            dataclasses.replace(study, output=tmp_path, seeds=(1, 2), **changed), different
        )

    return of_the_paper


def cell(summary, *names):
    return summary.cells.set_index(["protocol", "part", "method", "dataset"]).loc[names]


def test_intervals_and_tests_of_the_average_h_are_of_the_same_h(tmp_path):
    """CoOp has the higher H of the average accuracies, MPL the higher mean of the datasets' H."""
    accuracies = {"small_land": {"base": 90, "new": 10}, "small_counts": {"base": 40, "new": 90}}

    def accuracy(run):
        if run.variant.name == "MPL":
            return 45
        return accuracies[run.dataset][run.classes] + run.seed

    seeds = (1, 2, 3)
    found = summarise(study_of(tmp_path, TWO, "base2new", datasets=PAIR, seeds=seeds), accuracy)
    h = [2 * (65 + seed) * (50 + seed) / (115 + 2 * seed) for seed in seeds]
    average = cell(found, "base2new", "H", "CoOp", "average")
    assert average["spread"] == pytest.approx(pd.Series(h).std(ddof=0))
    test = stats.ttest_1samp([each - 45 for each in h], 0)
    low, high = test.confidence_interval(0.95)
    assert 0 < low < average["mean"] - 45 < high
    assert f"(95% interval {low:+.1f} to {high:+.1f})" in headlines(found)[0]
    row = found.tests.set_index("part").loc["H"]
    assert row["interval"] == pytest.approx((-high, -low))
    assert row["difference"] == pytest.approx(45 - sum(h) / 3)
    assert row["p_seeds"] == pytest.approx(test.pvalue)


def test_paper_is_compared_for_its_own_backbone_settings_and_datasets_only(of_the_paper):
    assert of_the_paper("cross_dataset", backbone="RN50").cells["paper"].isna().all()
    learning_rate = ("OPTIM.LR", "0.1")
    variants = (
        Variant("published", "MPL"),
        Variant("config", "MPL", cfg="small"),
        Variant("overrides", "MPL", overrides=learning_rate),
        Variant("datasets", "MPL", dataset_overrides={"dtd": learning_rate}),
        Variant("choose", "MPL", choose=(("OPTIM.LR", ("0.1", "0.2")),)),
    )
    study = Study(variants, ("dtd",), choose=SearchRule(VALIDATION))
    papers = summarise(study, lambda run: 50).cells.query("part == 'new'").dropna(subset="paper")
    assert papers[["method", "paper"]].to_numpy().tolist() == [["published", 58.13]]


def test_holm_corrects_for_the_comparisons_of_a_table():
    """The example of p = 0.01, 0.04, 0.03, 0.005: times 4, 3, 2, 1 in ascending order, never
    falling.
    """
    corrected = holm(pd.Series([0.01, 0.04, float("nan"), 0.03, 0.005]))
    expected = [0.03, 0.06, float("nan"), 0.06, 0.02]
    assert corrected.tolist() == pytest.approx(expected, nan_ok=True)
    assert holm(pd.Series([0.9, 0.8])).tolist() == [1.0, 1.0]


# The page of a study: every table with its marks, and names and errors as text.


HOSTILE = "<img src=x onerror=alert(1)> 'it' & \"that\"<pre><script>alert(1)<script>"


def texts(html: str, tag: str) -> list[str]:
    """The text of each element of this kind."""
    found = re.findall(rf"<{tag}(?: [^>]*)?>(.*?)</{tag}>", html, re.DOTALL)
    return [unescape(re.sub("<[^>]+>", "", inner)) for inner in found]


def test_page_has_every_table_with_its_marks_and_escapes_names_and_errors(
    study_file, tmp_path, monkeypatch
):
    # They take most of the time
    monkeypatch.setattr("studies.report.pictures", lambda summary: [])
    mpl = {"trainer": "MPL", "config": "small", "overrides": {"OPTIM.LR": 0.5}}
    file = study_file(
        "out", protocols=["base2new"], trainers={"CoOp": "small", HOSTILE: mpl}, seeds=[1, 2, 3]
    )
    study = load(file)
    *finished, failed = study.runs()
    for run in finished:
        finish(run, different(run)[0], device=HOSTILE, versions={HOSTILE: HOSTILE})
    failed.folder.mkdir(parents=True)
    (failed.folder / "error.txt").write_text(HOSTILE)
    study_command.main(["report", str(file)])
    html = (tmp_path / "out/studies/out/report.html").read_text().replace("<wbr>", "")
    tables = tables_of(summarise(study)).values()
    assert len(tables) > 3
    pages = re.findall(r"<table>(.*?)</table>", html, re.DOTALL)
    marks = "span", "strong", "u"
    for table, shown in zip(tables, pages, strict=False):
        found = re.findall(r"<(span|strong|u)>(.*?)</\1>", shown, re.DOTALL)
        cells = [("span", name) for name in table.header]
        cells += [(marks[cell.rank], cell.text) for row in table.rows for cell in row]
        assert [(mark, unescape(text)) for mark, text in found] == cells
        assert table.title in texts(html, "h3") and table.note in texts(html, "p")
    (rates,) = re.findall(r"<tr><th[^>]*><span>OPTIM\.LR</span>.*?</tr>", html)
    assert re.findall("<span>(.*?)</span>", rates)[1:] == ["0.5", "0.1"]
    assert texts(html, "p").count(HOSTILE) == 1  # the error
    folder, start, _ = texts(html, "code")
    assert folder == str(failed.folder) and start.startswith("python train.py --skip-finished ")
    assert not re.search(r"<(script|iframe|link)|<[^>]* on\w+=", html)


FILE = Path(__file__).with_name("study_snapshot.txt")
NAMES = ("CoOp", "MPL", "VPT")
SEEDS = (1, 2, 3)
MEASURES = {
    "ece": 4.0,
    "adaptive_ece": 3.0,
    "nll": 0.5,
    "brier": 0.25,
    "top5_accuracy": 90.0,
    "macro_f1": 60.0,
}
SELECTED = {"data_use": {"choose": [choice(8), choice(0)]}}
# Methods whose runs were selected on test images, by dataset
ON_TEST = {"small_land": NAMES[:1], "small_counts": NAMES[:2], "small_shapes": NAMES}
# Seed -> where and by what a run was made
MADE_BY = {
    1: {"device": "A40", "train_seconds": 30},
    2: {"device": "A40", "train_seconds": 50, "dirty": True, "version": "0.1.0"},
    3: {"device": "H100", "train_seconds": 10, "versions": {"torch": "1.0"}},
}
USUAL = {"version": "1.0.0", "commit": "a" * 40, "dirty": False, "versions": {"torch": "2.7.0"}}
# Accuracies of the seeds of CoOp, and of MPL
SURE = [
    ((50, 50, 50), (54, 55, 56)),
    ((40, 56, 60), (54, 55, 56)),
    ((50, 51, 52), (54, 55, 56)),
    ((40, None, None), (54, 55, 56)),
    ((40,), (50,)),
    ((61.3,), (61.3,)),
]
HARD = Table(
    "50 % of {it} & #1",
    ["a_b", "<c>"],
    [
        [Cell("x ± -1.00", 1), Cell("(-0.50 to -0.20) ~^\\$|", 2)],
        [Cell("[1ex]"), Cell("a-1")],  # after the \\ of the row above
        [Cell(" [x]"), Cell(" y")],
        [Cell("*"), Cell("-")],
    ],
    "n=2",
)


def halves(run):
    """Accuracies and measures of a study from base to new classes, where runs are missing."""
    name, dataset = run.variant.name, run.dataset
    if (name, dataset, run.classes) == ("MPL", "small_counts", "new"):
        return None
    if (name, dataset, run.classes, run.seed) == ("MPL", "small_land", "base", 1):
        return None
    ece = 4.0 - 2 * (name == "MPL") + run.seed + 10 * (dataset == "small_counts")
    chosen = [choice(8 * (name in ON_TEST[dataset] and run.classes != "new"))]
    found = MEASURES | {"ece": ece, "calibration": {"after": {"ece": ece / 2, "nll": 0.4}}}
    found["data_use"] = {"choose": chosen, "test": phase(sha256=dataset, evaluations=1)}
    if run.classes == "base":
        found["ood"] = [{"name": "new", "scores": {"MCM": {"auroc": 70.0 + len(name)}}}]
    if run.classes == "all":
        found["open_world"] = {"openworld_auc": 33.0}
    return 80 - 10 * NAMES.index(name) + run.seed, found


def on_machines(run):
    """Accuracies of four methods on two machines by several versions; some runs have images of
    their own.
    """
    name = run.variant.name
    if name == "MPL" and (run.dataset, run.seed) in {("small_land", 1), ("small_counts", 2)}:
        return None
    other = (name, run.dataset, run.seed)
    fitted = "its own" if other == ("VPT", "small_land", 2) else "usual"
    tested = "its own" if other == ("VPT", "small_counts", 1) else "usual"
    selected = (name, run.dataset) == ("CoOp", "small_land")
    use = {"choose": [choice(8 * selected)] if name != "VPT" else []}
    use |= {"fit": [phase(sha256="a start's"), phase(sha256=fitted)]}
    use |= {"test": phase(sha256=tested, evaluations=2)}
    accuracy = {"TDA": 90, "CoOp": 80, "MPL": 70, "VPT": 60}[name]
    return accuracy + run.seed, USUAL | MADE_BY[run.seed] | {"data_use": use}


def of_sure(of_methods, tmp_path):
    """The study of two methods whose seeds have these accuracies."""
    values = dict(zip(NAMES, of_methods, strict=False))
    study = study_of(tmp_path, NAMES[:2], seeds=(*range(len(of_methods[0])),))
    return summarise(study, lambda run: values[run.variant.name][run.seed])


def summaries(tmp_path):
    """The made-up studies, by a name."""
    three = study_of(
        tmp_path,
        NAMES,
        "base2new",
        datasets=(*PAIR, "small_shapes"),
        seeds=SEEDS,
        union=True,
        ood=("new",),
    )
    yield "from base to new classes", summarise(three, halves)
    yield (
        "machines",
        summarise(study_of(tmp_path, (*NAMES, "TDA"), datasets=PAIR, seeds=SEEDS), on_machines),
    )
    paper = load(ROOT / "studies/cross_dataset.yaml", settings=False)
    paper = dataclasses.replace(paper, output=tmp_path, seeds=(1, 2))
    yield "the paper's", summarise(paper, different)
    variant = Variant("MaPLe", "MaPLe", "vit_b16_c2_ep5_batch4_2ctx")
    of_authors = Study((variant,), ("dtd",), seeds=(1,), output=tmp_path)
    yield "the authors', selected on test images", summarise(of_authors, lambda run: (50, SELECTED))
    unfinished = study_of(tmp_path, ["MPL"], shots=(1, 16))
    yield "unfinished", summarise(unfinished, lambda run: 50 if run.shots == 1 else None)
    of_seeds = study_of(tmp_path, ["MPL"], seeds=SEEDS)
    yield "with intervals", summarise(of_seeds, lambda run: 50 + run.seed**2, intervals=True)


def written(tmp_path):
    """The text of the snapshot."""
    for name, summary in summaries(tmp_path):
        tables = [*tables_of(summary).values(), versions(summary.results.values())]
        if len(summary.study.variants) == 1:
            tables += compared_with_authors(summary)
        yield f"# A study: {name}\n"
        yield from (f"Warning: {line}\n" for line in summary.warnings)
        yield from headlines(summary)
        yield markdown(tables)
        cells = json.loads(json.dumps(summary.records(), allow_nan=False))["cells"]
        empty = [
            (cell["part"], cell["method"], cell["dataset"])
            for cell in cells
            if cell["mean"] is None
        ]
        yield f"Without a number in summary.json: {empty}\n"
    yield "# How sure a first place is\n"
    for of_methods in SURE:
        yield from headlines(of_sure(of_methods, tmp_path))
    yield "\n# Characters that Markdown and LaTeX escape\n"
    yield markdown([HARD])
    yield latex([HARD])


def test_tables_notes_and_sentences_are_those_of_the_snapshot(tmp_path):
    text = "\n".join(written(tmp_path)).rstrip() + "\n"
    if os.environ.get("RENEW"):
        FILE.write_text(text)
    renew = "if the change is wanted: RENEW=1 python -m pytest tests/studies/test_tables.py"
    assert text == FILE.read_text(), renew
