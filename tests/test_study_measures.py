"""What tables of a study say besides accuracy: calibration, detection, all classes together, and the data behind it."""

import dataclasses
import json

import pytest
from finished import finish

from common.errors import UsageError
from common.results import FILE, read_results
from experiments.methods import methods
from experiments.studies import command as study_command
from experiments.studies.first_page import overview
from experiments.studies.progress import collect_results
from experiments.studies.render import build_tables, markdown
from experiments.studies.spec import Study, Variant
from experiments.studies.study_file import load, study_from
from experiments.studies.tables import Summary

VARIANTS = (Variant("CoOp", "CoOp", "small"), Variant("MPL", "MPL", "small"))
MEASURES = {"ece": 4.0, "adaptive_ece": 3.0, "nll": 0.5, "brier": 0.25, "top5_accuracy": 90.0, "macro_f1": 60.0}


def card(sha256="0" * 64, evaluations=1):
    return {"choose": [], "test": {"sha256": sha256, "evaluations": evaluations}}


def summary_of(study):
    return Summary(study, collect_results(study))


def tables_of(study):
    summary = summary_of(study)
    return {table.title: table for table in (*overview(summary), *build_tables(summary))}


@pytest.fixture
def study(tmp_path):
    return Study(VARIANTS, ("small_land", "small_counts"), seeds=(1, 2), output=tmp_path, union=True, ood=("new",))


def test_union_and_near_ood_are_runs_of_the_study(study):
    assert [[run.classes for run in sequence] for sequence in study.sequences()] == 8 * [["base", "new", "all"]]
    base, new, everything = study.sequences()[0]
    assert base.arguments[base.arguments.index("--ood") + 1] == "new"
    assert "--ood" not in new.arguments and "--ood" not in everything.arguments
    assert str(everything.folder).endswith("base2new/test_all/small_land/shots_16/CoOp/small/seed1")
    assert everything.arguments[everything.arguments.index("--model-dir") + 1] == str(base.folder)
    usual = dataclasses.replace(study, union=False, ood=())
    assert [len(sequence) for sequence in usual.sequences()] == 8 * [2]
    assert "--ood" not in usual.sequences()[0][0].arguments


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"union": "yes"}, "union has the value 'yes': give true for base2new"),
        ({"union": True, "protocols": ["few_shot"]}, "union has the value True"),
        ({"ood": "new", "protocols": ["few_shot"]}, "ood has new, which needs base classes"),
        ({"ood": ["small_lant"]}, "did you mean small_land"),
    ],
)
def test_wrong_keys_are_refused(keys, words):
    with pytest.raises(UsageError, match=words):
        study_from({"trainers": {"MPL": "small"}, "datasets": ["small_land"]} | keys)


def test_tables_show_what_the_tests_measured(study):
    for run in study.runs():
        is_mpl = run.variant.method == "MPL"
        found = MEASURES | {"ece": (2.0 if is_mpl else 4.0) + run.seed + 10 * (run.dataset == "small_counts")}
        ood = [{"name": "new", "scores": {"MCM": {"auroc": 70.0 + is_mpl}}}] if run.classes == "base" else []
        finish(run, 50 + run.seed, **found, data_use=card(), ood=ood)
    tables = tables_of(study)
    first = tables["Summary: base2new"]
    of_calibration = [f"ECE, {part} (%)" for part in ("base", "new", "all")]
    own = ["training time (s)", *of_calibration, "chosen on images"]
    assert first.header == ["method", "H", "base", "new", "all", *own]
    assert {row[0].text: row[6].text for row in first.rows} == {"CoOp": "10.5", "MPL": "8.5"}
    assert {row[-1].text for row in first.rows} == {"nothing"}
    base = tables["base2new, base: calibration and more"]
    rows = [dict(zip(base.header, [cell.text for cell in row], strict=True)) for row in base.rows]
    assert [row["ECE"] for row in rows] == ["10.50", "8.50"]  # of two datasets and two seeds
    assert [row["AUROC new"] for row in rows] == ["70.00", "71.00"] and rows[0]["NLL"] == "0.500"
    assert "AUROC new" not in tables["base2new, all: calibration and more"].header
    assert "base2new, H: calibration and more" not in tables
    assert "base and new classes together" in tables["base2new, all"].note
    assert "harmonic mean of the mean base and the mean new accuracy" in tables["base2new, H"].note
    records = summary_of(study).records()
    assert records["H"] == "of the mean accuracies"
    assert {row["ece"] for row in records["measures"] if row["part"] == "base"} == {8.5, 10.5}


def test_results_of_earlier_versions_make_the_same_tables(study):
    for run in study.runs():
        finish(run, 50 + run.seed)
    text = markdown(list(tables_of(study).values()))
    assert "calibration" not in text and "Data:" not in text and summary_of(study).warnings == []


def test_a_line_says_what_the_tests_saw(study):
    for run in study.runs():
        test = card(evaluations=3 if (run.variant.name, run.seed, run.classes) == ("MPL", 2, "new") else 1)
        finish(run, 50, data_use=test | {"choose": [{"test_images": 5}] if run.variant.name == "MPL" else []})
    tables = tables_of(study)
    assert (
        "Data: all methods inductive; test images evaluated once by a run; 4 of 8 runs" in tables["base2new, base"].note
    )
    assert "evaluated up to 3 times by a run; 8 of 16 runs chose on them." in tables["base2new, H"].note


def test_runs_with_different_images_are_named(study):
    for run in study.runs():
        other = run.variant.name == "MPL" and run.seed == 1 and run.dataset == "small_counts"
        finish(run, 50, data_use=card("1" * 64 if other else "0" * 64))
    warnings = summary_of(study).warnings
    assert warnings == ["runs on small_counts were tested on different images: their results do not compare"]


def test_methods_with_other_training_images_are_named(study):
    for run in study.runs():
        other = run.variant.name == "MPL" and run.dataset == "small_land"
        fit = [{"sha256": "2" * 64}, {"sha256": ("1" if other else "0") * 64}]  # the first is a start's
        finish(run, 50, data_use=card() | {"fit": fit if other else fit[1:]})
    assert summary_of(study).warnings == [
        "runs on small_land learned from different images: their results do not compare"
    ]


def test_methods_are_ranked_among_their_kind(tmp_path, monkeypatch):
    facts = dataclasses.replace(methods()["MPL"], kind="transductive")
    monkeypatch.setattr("experiments.studies.spec.methods", lambda: methods() | {"MPL": facts})
    variants = (*VARIANTS, Variant("VPT", "VPT", "small"))
    study = Study(variants, ("small_land",), protocols=("few_shot",), seeds=(1,), output=tmp_path)
    for run in study.runs():
        finish(run, {"CoOp": 60, "MPL": 90, "VPT": 70}[run.variant.name], data_use=card())
    table = tables_of(study)["few_shot, 16 shots"]
    assert {row[0].text: row[1].rank for row in table.rows} == {"CoOp": 2, "MPL": 0, "VPT": 1}
    assert "MPL transductive (other methods inductive); ranked within a kind" in table.note


@pytest.mark.parametrize(
    "damage",
    [
        {"ece": -1},
        {"nll": float("nan")},
        {"brier": "0.2"},
        {"data_use": {"test": {"sha256": "a|b"}}},
        {"data_use": {"test": {"sha256": "0" * 64, "evaluations": -1}}},
        {"data_use": {"fit": [{"sha256": "a|b"}]}},
        {"data_use": {"fit": {"sha256": "0" * 64}}},
        {"ood": [{"name": "a\x1b", "scores": {}}]},
        {"ood": [{"name": "a", "scores": {"MCM": {"auroc": 101}}}]},
        {"ood": 3},
    ],
)
def test_impossible_measures_are_refused(damage, study):
    run = study.runs()[0]
    finish(run, 50, **damage)
    with pytest.raises(UsageError, match=f"{FILE} is damaged"):
        read_results(run.folder)


@pytest.mark.thorough
@pytest.mark.slow
def test_study_with_all_classes_and_detection(study_file, command):
    file = study_file("out", union=True, ood=["new", "small_objects"])
    assert command(study_command, "run", file, "--workers", 1).status == 0
    ended = command(study_command, "tables", file)
    assert ended.status == 0 and "AUROC new | AUROC small_objects" in ended.printed
    for base, _, everything in load(file).sequences():
        run = json.loads((everything.folder / FILE).read_text())
        assert (run["classes"], run["data_use"]["fit"][0]["classes"]) == ("all", "base")
        assert run["n_test"] == 2 * json.loads((base.folder / FILE).read_text())["n_test"]
