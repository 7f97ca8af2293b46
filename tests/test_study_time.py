"""benchmarks/study_time.py: what it measures and writes."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from benchmarks import study_time
from experiments.studies.study_file import load


def test_study_runs_with_each_and_all_of_what_is_shared(monkeypatch, study_file, tmp_path, capsys):
    studies = []

    def execute(command, **options):
        study = load(Path(command[3]), settings=False)
        precisions = {run.arguments[-1] for run in study.runs()} & {"bf16"}
        studies.append((bool(study.cache), bool(precisions), study.output.is_dir()))
        assert yaml.safe_load(Path(command[3]).read_text())["datasets"] == ["small_land"]
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(study_time.subprocess, "run", execute)
    file, root = study_file("study", cache="unused"), tmp_path / "data"
    options = ["--study", file, "--share", "cache", "bf16", "--rounds", 1, "--root", root]
    study_time.main([str(option) for option in (*options, "--json", tmp_path / "times.json")])
    assert studies == [(False, False, True), (True, False, True), (False, True, True), (True, True, True)]
    records = json.loads((tmp_path / "times.json").read_text())
    assert [each["with"] for each in records] == ["cache", "bf16", "cache + bf16"]
    for each in records:
        assert each["study"] == "study" and each["ratio"] == pytest.approx(
            each["plain_s"] / each["with_s"]
        )  # of one round
    assert capsys.readouterr().out.splitlines()[-1].startswith("| study | cache + bf16 | ")
