"""The numbers in a study's tables, their formats, and what the tables say besides accuracy."""

import dataclasses
import json
from itertools import product
from types import SimpleNamespace

import pandas as pd
import pytest
from finished import different, phase, study_of, summarise, tables_of
from scipy import stats

from common.start import ROOT
from configs.methods import methods as facts
from studies.comparing import smallest_difference
from studies.first_page import headlines, overview
from studies.render import Cell, build_tables, markdown
from studies.report import versions
from studies.rules import VALIDATION, SearchRule
from studies.spec import Study
from studies.study_file import load
from studies.tables import PAPER, Summary, holm
from studies.variant import Variant

pytestmark = pytest.mark.slow

TWO = ("CoOp", "MPL")
PAIR = ("small_land", "small_counts")


@pytest.fixture
def summary(tmp_path):
    """Two methods, two datasets, two seeds; MPL lacks the new classes of the second dataset."""

    def accuracy(run):
        if run.classes == "base":
            return 60 + 10 * run.seed
        missing = (run.variant.name, run.dataset) == ("MPL", "small_counts")
        return None if missing else (40 if run.variant.name == "CoOp" else 50) + 2 * run.seed

    return summarise(study_of(tmp_path, TWO, "base2new", datasets=PAIR, seeds=(1, 2)), accuracy)


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


def text_of(summary):
    return markdown(build_tables(summary))


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


def test_seeds_that_show_nothing_say_of_which_mean_a_difference_would_show(tmp_path):
    drawn = {"CoOp": (61, 53, 69), "MPL": (60, 60, 60)}

    def accuracy(run):
        return drawn[run.variant.name][run.seed - 1]

    study = study_of(tmp_path, TWO, datasets=PAIR, seeds=(1, 2, 3))
    (sentence,) = headlines(summarise(study, accuracy))
    least = smallest_difference([1, -7, 9])
    assert f"difference above {least:.1f} points of this mean over all datasets" in sentence
    assert "of one dataset, a larger one" in sentence


def test_the_seeds_of_an_average_have_all_datasets(tmp_path):
    missing = {("small_land", 1), ("small_counts", 2)}
    study = study_of(tmp_path, ["MPL"], datasets=PAIR, seeds=(1, 2, 3))
    found = summarise(study, lambda run: None if (run.dataset, run.seed) in missing else 50)
    assert "| MPL | 50.00 ± 0.00 (n=2) | 50.00 ± 0.00 (n=2) | 50.00 (n=1) |" in text_of(found)


def test_missing_runs_are_shown_and_not_averaged(summary):
    missing = summary.study.sequences()[1][0]  # MPL, small_land, seed 1, base
    left = {run: results for run, results in summary.results.items() if run != missing}
    found = Summary(summary.study, left)
    text = text_of(found)
    for row in (
        "| MPL | **80.00 (n=1)** | **75.00 ± 5.00** | **77.50 (n=1)** |",
        "| MPL | **53.00 ± 1.00** | - | - |",
        "| MPL | **63.76 (n=1)** | - | - |",
    ):
        assert row in text
    # Results of earlier versions have neither a calibration nor a card.
    assert "calibration" not in text and "Data:" not in text and found.warnings == []
    records = json.loads(json.dumps(found.records(), allow_nan=False))
    assert len(records["runs"]) == 13
    empty = [each for each in records["cells"] if each["mean"] is None]
    assert {each["method"] for each in empty} == {"MPL"}
    cells = {(each["part"], each["dataset"]) for each in empty}
    assert cells == {*product(("new", "H"), ("small_counts", "average"))}


@pytest.mark.parametrize(("name", "part"), [("base2new", "new"), ("cross_dataset", "all classes")])
def test_paper_figures_are_beside_the_results(of_the_paper, name, part):
    summary = of_the_paper(name)
    for dataset, figure in PAPER[name][part]["MPL"].items():
        ours = cell(summary, name, part, "MPL", dataset)
        assert ours["paper"] == figure
        assert ours["difference"] == pytest.approx(ours["mean"] - figure)
    eurosat = cell(summary, name, part, "MPL", "eurosat")
    text = text_of(summary)
    assert f"## {name}, {part}: the paper" in text
    assert f"| {eurosat['paper']:.2f} ({eurosat['difference']:+.2f}) |" in text


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


def test_significance_is_paired_by_seed_and_dataset(of_the_paper):
    summary = of_the_paper("cross_dataset")
    rows = summary.tests.set_index("against")
    assert list(rows.index) == ["ZeroshotCLIP", "CoOp", "CoCoOp", "MaPLe", "PromptSRC"]
    mine, other = (
        summary.by_seed("cross_dataset", "all classes", name)[list(summary.study.targets)]
        for name in ("MPL", "CoOp")
    )
    coop = rows.loc["CoOp"]
    assert coop["difference"] == pytest.approx((mine - other).to_numpy().mean())
    p = stats.wilcoxon(mine.mean(), other.mean()).pvalue
    assert coop["p_datasets"] == pytest.approx(p)
    assert (coop["seeds"], coop["datasets"]) == (2, 10)
    assert rows["p_seeds"].isna().all()  # two seeds
    assert (rows["holm_datasets"] >= rows["p_datasets"]).all()
    assert f"Holm {coop['holm_datasets']:.3f} (n=10)" in text_of(summary)
    (table,) = overview(summary)
    assert table.header == ["method", "all classes", "training time (s)"]
    shown = {row[0].text: row[1:] for row in table.rows}
    average = cell(summary, "cross_dataset", "all classes", "MPL", "average")
    accuracy = Cell(f"{average['mean']:.2f} ± {average['spread']:.2f}", 1)
    assert shown["MPL"] == [accuracy, Cell("30.0")]
    assert shown["ZeroshotCLIP"][1].text == "-"


def test_holm_corrects_for_the_comparisons_of_a_table():
    """The example of p = 0.01, 0.04, 0.03, 0.005: times 4, 3, 2, 1 in ascending order, never
    falling.
    """
    corrected = holm(pd.Series([0.01, 0.04, float("nan"), 0.03, 0.005]))
    expected = [0.03, 0.06, float("nan"), 0.06, 0.02]
    assert corrected.tolist() == pytest.approx(expected, nan_ok=True)
    assert holm(pd.Series([0.9, 0.8])).tolist() == [1.0, 1.0]


def test_runs_of_several_versions_are_named(tmp_path):
    now = {"version": "1.0.0", "commit": "a" * 40, "dirty": False, "versions": {"torch": "2.7.0"}}
    others = {
        "0.1.0 of commit aaaaaaaaa with changes": {"version": "0.1.0", "dirty": True},
        "commit bbbbbbbbb": {"commit": "b" * 40},
        "torch 1.0 (1 runs)": {"versions": {"torch": "1.0"}},
    }
    study = study_of(tmp_path, ["MPL"], seeds=(1, 2, 3))
    assert summarise(study, lambda run: (50, now)).warnings == []
    for words, change in others.items():
        of_seed = {1: now, 2: now | change, 3: now}
        (line,) = summarise(study, lambda run, of_seed=of_seed: (50, of_seed[run.seed])).warnings
        assert (
            "of 2 versions, which averages mix: 1.0.0 of commit aaaaaaaaa, torch 2.7.0 (2" in line
        )
        assert words in line


def test_the_device_is_above_the_versions_which_are_counted_where_they_differ():
    runs = [SimpleNamespace(device="A40", versions={"torch": torch}) for torch in ("2.7", "1.0")]
    rows = [[cell.text for cell in row] for row in versions(runs).rows]
    assert rows == [["device", "A40"], ["torch", "2.7 (n=1); 1.0 (n=1)"]]


def test_times_are_averaged_per_device(tmp_path):
    measured = {1: ("A40", 30), 2: ("A40", 50), 3: ("H100", 10)}

    def accuracy(run):
        device, seconds = measured[run.seed]
        return 50, {"device": device, "train_seconds": seconds}

    summary = summarise(study_of(tmp_path, ["MPL"], seeds=(1, 2, 3)), accuracy)
    times = summary.times[["device", "seconds", "runs"]].to_numpy().tolist()
    assert times == [["A40", 40, 2], ["H100", 10, 1]]
    (line,) = summary.warnings
    assert "the runs are from 2 devices (A40, H100)" in line
    assert "| 40.0 (A40), 10.0 (H100) |" in markdown(overview(summary))
    study = study_of(tmp_path, ["MPL"], shots=(1, 16))
    few = summarise(study, lambda run: 50 if run.shots == 1 else None)
    # 16 shots have no time yet
    assert not few.times.empty and "| MPL | - | 50.00 | - |" in markdown(overview(few))


def test_intervals_over_seeds_replace_the_deviation_on_request(tmp_path):
    values = (50, 52, 57)
    study = study_of(tmp_path, ["MPL"], seeds=(1, 2, 3))
    deviation, interval = (
        text_of(summarise(study, lambda run: values[run.seed - 1], intervals=by_interval))
        for by_interval in (False, True)
    )
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert "± 2.94" in deviation and f"| MPL | 53.00 ± {(high - low) / 2:.2f} |" in interval
    assert "±: half of the 95% t-interval of" in interval


def test_methods_are_ranked_among_their_kind(tmp_path, monkeypatch):
    transductive = type("Transductive", (facts()["MPL"],), {"kind": "transductive"})
    monkeypatch.setattr("studies.variant.methods", lambda: facts() | {"MPL": transductive})
    values = {"CoOp": 60, "MPL": 90, "VPT": 70}
    summary = summarise(
        study_of(tmp_path, list(values)),
        lambda run: (values[run.variant.name], {"data_use": {"choose": [], "test": CARD}}),
    )
    table = tables_of(summary)["few_shot, 16 shots"]
    assert {row[0].text: row[1].rank for row in table.rows} == {"CoOp": 2, "MPL": 0, "VPT": 1}
    assert "MPL transductive (other methods inductive); ranked within a kind" in table.note
    (sentence,) = headlines(summary)
    assert "VPT is first of the inductive methods" in sentence and "10.0 points above" in sentence


# What the tests measured besides accuracy, and on which images

CARD = phase(sha256="0" * 64, evaluations=1)
MEASURES = {
    "ece": 4.0,
    "adaptive_ece": 3.0,
    "nll": 0.5,
    "brier": 0.25,
    "top5_accuracy": 90.0,
    "macro_f1": 60.0,
}


@pytest.fixture
def union(tmp_path):
    """`union(measured)` -> the summary of a study of three parts, where `measured(run)` is what
    runs measured.
    """
    study = study_of(
        tmp_path, TWO, "base2new", datasets=PAIR, seeds=(1, 2), union=True, ood=("new",)
    )
    return lambda measured: summarise(study, lambda run: (50 + run.seed, measured(run)))


def test_tables_show_what_the_tests_measured(union):
    def measured(run):
        is_mpl = run.variant.method == "MPL"
        ece = 4.0 - 2 * is_mpl + run.seed + 10 * (run.dataset == "small_counts")
        found = MEASURES | {"ece": ece, "data_use": {"choose": [], "test": CARD}}
        found["calibration"] = {"after": {"ece": ece / 2, "nll": 0.4}}
        if run.classes == "base":
            found["ood"] = [{"name": "new", "scores": {"MCM": {"auroc": 70.0 + is_mpl}}}]
        if run.classes == "all":
            found["open_world"] = {"openworld_auc": 33.0}
        return found

    summary = union(measured)
    tables = tables_of(summary)
    first = tables["Summary: base2new"]
    eces = [f"ECE, {part} (%)" for part in ("base", "new", "all")]
    assert first.header[5:] == ["training time (s)", *eces, "chosen on images"]
    assert {row[0].text: row[6].text for row in first.rows} == {"CoOp": "10.50", "MPL": "8.50"}
    assert {row[-1].text for row in first.rows} == {"nothing"}
    base = tables["base2new, base: calibration and more"]
    rows = [dict(zip(base.header, [cell.text for cell in row], strict=True)) for row in base.rows]
    assert [row["ECE"] for row in rows] == ["10.50", "8.50"]  # of two datasets and two seeds
    assert [row["AUROC new"] for row in rows] == ["70.00", "71.00"] and rows[0]["NLL"] == "0.500"
    assert [row["ECE calibrated"] for row in rows] == ["5.25", "4.25"]
    assert (rows[0]["NLL calibrated"], rows[0]["Brier"]) == ("0.400", "0.250")
    union_table = tables["base2new, all: calibration and more"]
    assert "AUROC new" not in union_table.header and "OpenworldAUC" not in base.header
    assert union_table.rows[0][union_table.header.index("OpenworldAUC")].text == "33.00"
    assert "base2new, H: calibration and more" not in tables
    assert "base and new classes together" in tables["base2new, all"].note
    assert "harmonic mean of the mean base and the mean new accuracy" in tables["base2new, H"].note
    records = summary.records()
    assert records["H"] == "of the mean accuracies"
    assert {row["ece"] for row in records["measures"] if row["part"] == "base"} == {8.5, 10.5}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"test": CARD | {"sha256": "1" * 64}}, "were tested on"),
        # The first is a start's
        ({"fit": [phase(sha256="2" * 64), phase(sha256="1" * 64)]}, "learned from"),
    ],
)
def test_runs_with_different_images_are_named(change, words, union):
    usual = {"test": CARD, "fit": [phase(sha256="2" * 64)], "choose": []}
    other = ("MPL", 1, "small_counts")

    def measured(run):
        is_other = (run.variant.name, run.seed, run.dataset) == other
        return {"data_use": usual | (change if is_other else {})}

    (line,) = union(measured).warnings
    assert f"runs on small_counts {words} different images" in line
