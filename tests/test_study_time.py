"""benchmarks/study_time.py: what it measures and writes."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from benchmarks import study_time
from experiments.studies.study_file import load

KEYS = {"what", "method", "backbone", "seeds", "alone_s", "together_s", "ratio"}


@pytest.mark.thorough
def test_one_record_for_each_number_of_seeds(tmp_path, drawn, capsys):
    options = ["--methods", "CoOp", "--seeds", 1, 2, "--epochs", 1, "--shots", 1, "--rounds", 1, "--root", drawn]
    study_time.main([str(option) for option in (*options, "--json", tmp_path / "times.json")])
    records = json.loads((tmp_path / "times.json").read_text())
    assert [(each["method"], each["backbone"], each["seeds"]) for each in records] == [
        ("CoOp", "small", 1),
        ("CoOp", "small", 2),
    ]
    for each in records:
        assert each.keys() == KEYS and each["ratio"] == pytest.approx(each["alone_s"] / each["together_s"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("| runs | CoOp | small | 2 | ")


def test_ways_take_turns_and_medians_are_reported(monkeypatch):
    order, clock = [], iter(range(1000))
    monkeypatch.setattr(study_time.time, "perf_counter", lambda: next(clock) ** 2)
    found = study_time.in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 3 and found == {"a": 9, "b": 13}


def test_study_runs_with_each_and_all_of_what_is_shared(monkeypatch, study_file, tmp_path):
    studies = []

    def execute(command, **options):
        study = load(Path(command[3]), settings=False)
        precisions = {run.arguments[-1] for run in study.runs()} & {"bf16"}
        studies.append((bool(study.cache), study.together, bool(precisions), study.output.is_dir()))
        assert yaml.safe_load(Path(command[3]).read_text())["datasets"] == ["small_land"]
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(study_time.subprocess, "run", execute)
    file, root = study_file("study", cache="unused"), tmp_path / "data"
    options = ["--study", file, "--share", "cache", "together", "bf16", "--rounds", 1, "--root", root]
    study_time.main([str(option) for option in (*options, "--json", tmp_path / "times.json")])
    assert studies == [
        (False, "", False, True),
        (True, "", False, True),
        (False, "seeds", False, True),
        (False, "", True, True),
        (True, "seeds", True, True),
    ]
    records = json.loads((tmp_path / "times.json").read_text())
    assert [each["what"] for each in records] == [
        "study with cache",
        "study with together",
        "study with bf16",
        "study with cache + together + bf16",
    ]
