"""The numbers in a study's tables, and their formats."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from finished import finish, finish_all
from scipy import stats

from experiments.studies.critical import groups, ranking
from experiments.studies.first_page import headlines, overview
from experiments.studies.plots import critical_difference
from experiments.studies.progress import collect_results
from experiments.studies.render import Cell, Table, build_tables, latex, markdown, over_datasets
from experiments.studies.spec import Study, Variant
from experiments.studies.study_file import load
from experiments.studies.tables import PAPER, Summary, holm
from trainers import methods

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
VARIANTS = (Variant("CoOp", "CoOp", "small"), Variant("MPL", "MPL", "small"))
KEYS = ["protocol", "part", "method", "dataset"]


@pytest.fixture
def study(tmp_path):
    """Two methods, two datasets, two seeds; MPL lacks the new classes of the second dataset."""
    study = Study(VARIANTS, ("small_land", "small_counts"), seeds=(1, 2), output=tmp_path)
    for base, new in study.sequences():
        finish(base, 60 + 10 * base.seed)
        if (new.variant.name, new.dataset) != ("MPL", "small_counts"):
            finish(new, (40 if new.variant.name == "CoOp" else 50) + 2 * new.seed)
    return study


@pytest.fixture
def of_the_paper(tmp_path):
    """`of_the_paper(name, **changed)` -> Summary of a study of studies/, finished with two seeds."""

    def of_the_paper(name, **changed):
        study = dataclasses.replace(load(ROOT / f"studies/{name}.yaml"), output=tmp_path, seeds=(1, 2), **changed)
        finish_all(study)
        return Summary(study, collect_results(study))

    return of_the_paper


def cell(summary, *names):
    return summary.cells.set_index(KEYS).loc[names]


def test_caveats_of_a_method_are_below_the_tables(study, monkeypatch):
    monkeypatch.setattr(methods()["CoOp"], "caveat", "published with 4 shots")
    tables = build_tables(Summary(study, collect_results(study)))
    notes = [table.note for table in tables if table.note.startswith("Accuracy in %")]
    assert len(notes) == 3 and all(note.endswith(" CoOp: published with 4 shots.") for note in notes)


def test_a_caveat_has_no_full_stop_of_its_own():
    assert not [method for method in methods().values() if method.caveat.endswith(".")]


def test_means_and_spreads_over_seeds(study):
    found = cell(Summary(study, collect_results(study)), "base2new", "base", "MPL", "small_land")
    assert tuple(found[["mean", "spread", "runs"]]) == (75, 5, 2)


def test_h_uses_means_and_its_spread_uses_seeds(study):
    h = cell(Summary(study, collect_results(study)), "base2new", "H", "CoOp", "small_land")
    assert h["mean"] == pytest.approx(2 * 75 * 43 / (75 + 43))
    seeds = [2 * 70 * 42 / 112, 2 * 80 * 44 / 124]
    assert h["spread"] == pytest.approx(abs(seeds[1] - seeds[0]) / 2)


def test_average_over_datasets_and_its_h(tmp_path):
    study = Study(VARIANTS[1:], ("small_land", "small_counts"), seeds=(1,), output=tmp_path)
    for run, accuracy in zip(study.runs(), (80, 40, 60, 60), strict=True):  # base and new classes of each dataset
        finish(run, accuracy)
    summary = Summary(study, collect_results(study))
    means = [cell(summary, "base2new", part, "MPL", "average")["mean"] for part in ("base", "new", "H")]
    assert means == pytest.approx([70, 50, 2 * 70 * 50 / 120])


def test_missing_runs_are_shown_and_not_averaged(study):
    shutil.rmtree(study.sequences()[1][0].folder)  # MPL, small_land, seed 1, base
    text = markdown(build_tables(Summary(study, collect_results(study))))
    base, new, h = (re.search(rf"## base2new, {part}\n(.*?)\n\n[^|]", text, re.S)[1] for part in ("base", "new", "H"))
    assert "| MPL | **80.00 (n=1)** | **75.00 ± 5.00** | **77.50 (n=1)** |" in base
    assert "| MPL | **53.00 ± 1.00** | - | - |" in new
    assert "| MPL | **63.76 (n=1)** | - | - |" in h


def test_best_and_second_best_are_marked_and_ties_are_equal(tmp_path):
    variants = tuple(Variant(name, "MPL", "small", overrides=("OPTIM.LR", "1.0")) for name in "abcd")
    study = Study(variants, ("small_land",), protocols=("few_shot",), seeds=(1,), output=tmp_path)
    for (run,), accuracy in zip(study.sequences(), (50, 70.001, 70, 60), strict=True):
        finish(run, accuracy)
    text = markdown(build_tables(Summary(study, collect_results(study))))
    rows = re.findall(r"^\| ([abcd]) \| (.*?) \|", text, re.M)[:4]
    assert rows == [("a", "50.00"), ("b", "**70.00**"), ("c", "**70.00**"), ("d", "_60.00_")]


def test_source_is_not_in_the_average(of_the_paper):
    summary = of_the_paper("domain_generalisation")
    row = summary.cells[summary.cells["method"] == "CoOp"].set_index("dataset")["mean"]
    targets = ["imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"]
    assert list(row.index) == ["imagenet", *targets, "average"]
    assert row["average"] == pytest.approx(row[targets].mean())


@pytest.mark.parametrize(("name", "part"), [("base2new", "new"), ("cross_dataset", "all classes")])
def test_paper_figures_are_beside_the_results(of_the_paper, name, part):
    summary = of_the_paper(name)
    for dataset, figure in PAPER[name][part]["MPL"].items():
        ours = cell(summary, name, part, "MPL", dataset)
        assert ours["paper"] == figure
        assert ours["difference"] == pytest.approx(ours["mean"] - figure)
    eurosat = cell(summary, name, part, "MPL", "eurosat")
    text = markdown(build_tables(summary))
    assert f"## {name}, {part}: the paper" in text
    assert f"| {eurosat['paper']:.2f} ({eurosat['difference']:+.2f}) |" in text


def test_paper_is_compared_for_its_own_backbone_and_datasets_only(of_the_paper, tmp_path):
    assert of_the_paper("cross_dataset", backbone="RN50").cells["paper"].isna().all()
    study = Study(VARIANTS[1:], ("dtd",), seeds=(1,), backbone="ViT-B/16", output=tmp_path)
    finish_all(study)
    summary = Summary(study, collect_results(study))
    assert cell(summary, "base2new", "new", "MPL", "dtd")["paper"] == 58.13
    assert pd.isna(cell(summary, "base2new", "new", "MPL", "average")["paper"])


def test_significance_is_paired_by_seed_and_dataset(of_the_paper):
    summary = of_the_paper("cross_dataset")
    rows = summary.tests.set_index("against")
    assert list(rows.index) == ["ZeroshotCLIP", "CoOp", "CoCoOp", "MaPLe", "PromptSRC"]
    mine, other = (
        summary.by_seed("cross_dataset", "all classes", name)[list(summary.study.targets)] for name in ("MPL", "CoOp")
    )
    expected = {
        "difference": (mine - other).to_numpy().mean(),
        "p_datasets": stats.wilcoxon(mine.mean(), other.mean()).pvalue,
    }
    assert dict(rows.loc["CoOp", list(expected)]) == pytest.approx(expected)
    assert tuple(rows.loc["CoOp", ["seeds", "datasets"]]) == (2, 10)
    assert rows["p_seeds"].isna().all()  # two seeds
    assert (rows["holm_datasets"] >= rows["p_datasets"]).all()
    text = markdown(build_tables(summary))
    assert f"Holm {rows.loc['CoOp', 'holm_datasets']:.3f} (n=10)" in text


@pytest.mark.parametrize(("seeds", "shown"), [(2, False), (3, True)])
def test_no_p_value_for_few_runs(seeds, shown, tmp_path):
    study = Study(VARIANTS, ("small_land",), protocols=("few_shot",), seeds=tuple(range(seeds)), output=tmp_path)
    for (run,) in study.sequences():
        finish(run, 50 + (run.variant.name == "MPL") * (1 + run.seed))
    summary = Summary(study, collect_results(study))
    text = markdown(build_tables(summary))
    assert ("against the others" in text) == shown == (len(summary.tests) == 1)
    assert ("| CoOp | +2.00 (-0.48 to +4.48) | 3.26 | 0.074, Holm 0.074 (n=3) | - (n=1) |" in text) == shown


def test_holm_corrects_for_the_comparisons_of_a_table():
    """The example of p = 0.01, 0.04, 0.03, 0.005: times 4, 3, 2, 1 in ascending order, never falling."""
    corrected = holm(pd.Series([0.01, 0.04, float("nan"), 0.03, 0.005], index=list("abcde")))
    assert corrected.drop("c").to_dict() == pytest.approx({"a": 0.03, "b": 0.06, "d": 0.06, "e": 0.02})
    assert pd.isna(corrected["c"]) and holm(pd.Series([0.9, 0.8])).tolist() == [1.0, 1.0]


def test_overview_has_averages_and_training_time(of_the_paper):
    summary = of_the_paper("cross_dataset")
    (table,) = overview(summary)
    assert table.header == ["method", "all classes", "training time (s)"]
    rows = {row[0].text: row[1:] for row in table.rows}
    average = cell(summary, "cross_dataset", "all classes", "MPL", "average")
    assert rows["MPL"][0].text == f"{average['mean']:.2f} ± {average['spread']:.2f}" and rows["MPL"][0].rank == 1
    assert rows["MPL"][1].text == "30.0" and rows["ZeroshotCLIP"][1].text == "-"


def test_times_are_averaged_per_device(tmp_path):
    study = Study(VARIANTS[1:], ("small_land",), protocols=("few_shot",), seeds=(1, 2, 3), output=tmp_path)
    for (run,), device, seconds in zip(study.sequences(), ("A40", "A40", "H100"), (30, 50, 10), strict=True):
        finish(run, 50, device=device, train_seconds=seconds)
    summary = Summary(study, collect_results(study))
    assert summary.times.set_index("device")[["seconds", "runs"]].T.to_dict("list") == {"A40": [40, 2], "H100": [10, 1]}
    assert summary.warnings == ["the runs are from 2 devices (A40, H100): each has its own average times"]
    assert "| 40.0 (A40), 10.0 (H100) |" in markdown(overview(summary))


def test_impossible_times_of_old_files_are_left_out(tmp_path):
    """They were differences of a clock that can be set back."""
    study = Study(VARIANTS[1:], ("small_land",), protocols=("few_shot",), seeds=(1, 2), output=tmp_path)
    for run in study.runs():
        finish(run, 50, test_seconds=-0.4, train_seconds=-0.4 if run.seed == 1 else 2.0)
    summary = Summary(study, collect_results(study))
    assert summary.runs["test_seconds"].isna().all() and summary.times["seconds"].tolist() == [2.0]


def test_json_has_every_run_and_null_for_missing_values(study):
    records = json.loads(json.dumps(Summary(study, collect_results(study)).records(), allow_nan=False))
    assert len(records["runs"]) == 14
    missing = [cell for cell in records["cells"] if cell["mean"] is None]
    names = {(cell["part"], cell["method"], cell["dataset"]) for cell in missing}
    assert names == {(part, "MPL", dataset) for part in ("new", "H") for dataset in ("small_counts", "average")}


@pytest.mark.parametrize(
    ("of_coop", "words"),
    [
        ((50, 50, 50), "5.0 points above CoOp. The 3 seeds show that it is better (95% interval +2.5 to +7.5)."),
        (
            (40, 56, 60),
            "do not show that it is better (95% interval -21.0 to +27.0; they could show a",
        ),
        ((40,), "10.0 points above CoOp. With one seed, nothing says how sure this is."),
    ],
)
def test_the_first_page_says_how_sure_the_first_place_is(of_coop, words, tmp_path):
    seeds = tuple(range(len(of_coop)))
    study = Study(VARIANTS, ("small_land",), protocols=("few_shot",), seeds=seeds, output=tmp_path)
    values = {"CoOp": of_coop, "MPL": (54, 55, 56) if len(seeds) > 1 else (50,)}
    for run in study.runs():
        choose = [{"what": "epoch", "split": "val", "test_images": 0}] if run.variant.name == "MPL" else []
        finish(run, values[run.variant.name][run.seed], data_use={"choose": choose})
    summary = Summary(study, collect_results(study))
    (sentence,) = headlines(summary)
    assert sentence.startswith("few_shot: MPL is first with 16 shots 5") and words in sentence
    (table,) = overview(summary)
    assert [row[0].text for row in table.rows] == ["MPL", "CoOp"]
    assert [row[-1].text for row in table.rows] == ["epoch: val", "nothing"]


def test_the_first_page_ranks_a_method_among_its_kind(tmp_path):
    variants = (*VARIANTS, Variant("TDA", "TDA", "small"))
    study = Study(variants, ("small_land",), protocols=("few_shot",), seeds=(1,), output=tmp_path)
    for run, value in zip(study.runs(), (50, 55, 60), strict=True):
        finish(run, value)
    (sentence,) = headlines(Summary(study, collect_results(study)))
    assert sentence.startswith(
        "few_shot: MPL is first of the inductive methods with 16 shots 55.0%, 5.0 points above C"
    )


def test_intervals_over_seeds_replace_the_deviation_on_request(tmp_path):
    study = Study(VARIANTS[1:], ("small_land",), protocols=("few_shot",), seeds=(1, 2, 3), output=tmp_path)
    for run, value in zip(study.runs(), (50, 52, 57), strict=True):
        finish(run, value)
    low, high = stats.ttest_1samp([50, 52, 57], 0).confidence_interval(0.95)
    text = markdown(build_tables(Summary(study, collect_results(study), intervals=True)))
    assert f"| MPL | 53.00 ± {(high - low) / 2:.2f} |" in text and "mean ± half of the 95% t-interval over" in text
    assert "± 2.94" in markdown(build_tables(Summary(study, collect_results(study))))


NEMENYI = {3: 2.343, 4: 2.569}  # q at 0.05 for k methods (Demšar, JMLR 2006, table 5a)
SETS = ("dtd", "eurosat", "food101", "small_counts", "small_land", "sun397")


@pytest.mark.parametrize("methods", [3, 4])
def test_ranks_over_datasets_are_those_of_the_published_formulas(methods, tmp_path):
    variants = tuple(Variant(name, "MPL", "small", overrides=("OPTIM.LR", "1.0")) for name in "abcd"[:methods])
    study = Study(variants, SETS, protocols=("few_shot",), seeds=(1,), output=tmp_path)
    values = {
        "a": (90, 90, 90, 90, 90, 90),
        "b": (80, 80, 85, 80, 80, 80),
        "c": (80, 70, 91, 70, 70, 70),
        "d": range(6),
    }
    for run in study.runs():
        finish(run, values[run.variant.name][SETS.index(run.dataset)])
    found = ranking(Summary(study, collect_results(study)), "few_shot", "16 shots", "inductive")
    expected = {"a": 7 / 6, "b": 13.5 / 6, "c": 15.5 / 6, "d": 4}
    assert found.ranks.to_dict() == pytest.approx({name: expected[name] for name in "abcd"[:methods]})
    k, n = methods, len(SETS)
    chi2 = 12 * n / (k * (k + 1)) * (sum(found.ranks**2) - k * (k + 1) ** 2 / 4)
    ties = 6 / (n * (k**3 - k))  # of the two that share a rank
    assert found.p == pytest.approx(stats.chi2.sf(chi2 / (1 - ties), k - 1))
    assert found.difference == pytest.approx(NEMENYI[k] * (k * (k + 1) / (6 * n)) ** 0.5, rel=1e-3)
    for i, one in enumerate(found.ranks):
        for j, other in enumerate(found.ranks[i + 1 :], start=i + 1):
            assert any(first <= i and j <= last for first, last in groups(found)) == (other - one < found.difference)


def test_methods_selected_on_test_images_have_no_rank(tmp_path):
    variants = tuple(Variant(name, "MPL", "small", overrides=("OPTIM.LR", "1.0")) for name in "abcd")
    study = Study(variants, SETS, protocols=("few_shot",), seeds=(1,), output=tmp_path)
    on_test = {"choose": [{"what": "epoch", "split": "test", "test_images": 12}]}
    for run in study.runs():
        finish(run, ord(run.variant.name) - 50, **({"data_use": on_test} if run.variant.name == "d" else {}))
    found = ranking(Summary(study, collect_results(study)), "few_shot", "16 shots", "inductive")
    assert list(found.ranks.index) == ["c", "b", "a"]


def test_methods_of_another_kind_have_ranks_of_their_own(tmp_path):
    names = {"MPL": "abc", "TDA": "xyz"}
    variants = tuple(
        Variant(name, method, "small", overrides=("OPTIM.LR", "1.0")) for method, each in names.items() for name in each
    )
    study = Study(variants, SETS, protocols=("few_shot",), seeds=(1,), output=tmp_path)
    for run in study.runs():
        finish(run, ord(run.variant.name) - 50)
    summary = Summary(study, collect_results(study))
    found = {kind: list(ranking(summary, "few_shot", "16 shots", kind).ranks.index) for kind in summary.kinds}
    assert found == {"inductive": ["c", "b", "a"], methods()["TDA"].kind: ["z", "y", "x"]}
    panels = critical_difference(summary)
    assert [ax.get_title().rpartition("\n")[2] for ax in panels.axes] == [f"{kind} methods" for kind in found]
    note = over_datasets(summary, "few_shot", "16 shots")
    assert all(f"All {kind} methods over 6 datasets" in note for kind in found)


HARD = Table("50 % of {it} & #1", ["a_b", "<c>"], [[Cell("x ± -1.00", 1), Cell("(-0.50) ~^\\$|", 2)]], "n=2")


def test_latex_escapes_special_characters():
    text = latex([HARD])
    assert text.startswith("% 50 \\% of \\{it\\} \\& \\#1\n" r"\begin{tabular}{lc}")
    assert (
        r"\textbf{x $\pm$ -1.00} & \underline{($-$0.50) \textasciitilde{}\textasciicircum{}\textbackslash{}\$$|$}"
        in text
    )
    assert text.isascii()
