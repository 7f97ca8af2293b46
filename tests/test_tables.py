"""The numbers in a study's tables, their formats, and what the tables say besides accuracy."""

import dataclasses

import pandas as pd
import pytest
from finished import different, study_of, summarise
from scipy import stats

from common.start import ROOT
from studies.first_page import headlines
from studies.rules import VALIDATION, SearchRule
from studies.spec import Study
from studies.study_file import load
from studies.tables import holm
from studies.variant import Variant

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
