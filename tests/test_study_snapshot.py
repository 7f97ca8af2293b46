"""The tables, notes and sentences of small made-up studies are those of study_snapshot.txt."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
from finished import choice, different, phase, study_of, summarise, tables_of

from common.start import ROOT
from studies.first_page import headlines
from studies.render import Cell, Table, latex, markdown
from studies.report import versions
from studies.reproduce import compared_with_authors
from studies.spec import Study
from studies.study_file import load
from studies.variant import Variant

pytestmark = pytest.mark.slow

FILE = Path(__file__).with_name("study_snapshot.txt")
NAMES = ("CoOp", "MPL", "VPT")
PAIR = ("small_land", "small_counts")
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
    renew = "if the change is wanted: RENEW=1 python -m pytest tests/test_study_snapshot.py"
    assert text == FILE.read_text(), renew
