"""What does not wait for torch: the facts of methods from their source, and the status of a study."""

import ast
import json
import subprocess
import sys

import pytest

import trainers
from common.errors import UsageError
from common.start import ROOT
from experiments import methods
from experiments.studies.progress import recorded_results
from experiments.studies.study_file import load

QUICK = """
import sys
from experiments.studies.command import main
main(["status", {file!r}])
slow = {{"torch", "torchvision", "open_clip", "scipy", "sklearn", "pandas", "matplotlib"}} & set(sys.modules)
sys.exit(f"imported: {{slow}}" if slow else 0)
"""


def test_source_has_the_facts_of_the_classes():
    assert set(methods.method_names()) == set(trainers.methods())
    for name, known in methods.methods().items():
        assert methods.is_plain(name)
        assert methods.from_source(name) == known


@pytest.mark.slow
def test_source_of_a_method_is_read_once_for_all_runs_of_a_study(study_file, monkeypatch):
    read, from_source = [], methods.from_source
    monkeypatch.setattr(methods, "from_source", lambda name: read.append(name) or from_source(name))
    monkeypatch.setitem(sys.modules, "trainers", None)  # as if it were not imported
    methods.from_sources.cache_clear()
    load(study_file("once"), settings=False).runs()
    assert sorted(read) == sorted(methods.method_names())


@pytest.mark.parametrize(
    "body",
    ["learns = not True", "config_folder = 'A' + 'B'", "@classmethod\n    def section(cls): return 'X'"],
)
def test_computed_facts_are_not_read_from_the_source(body, monkeypatch):
    (node,) = ast.parse(f"class Mine(CoOp):\n    {body}").body
    monkeypatch.setitem(methods.classes(), "Mine", node)
    assert not methods.is_plain("Mine")


def test_facts_with_types_and_of_an_extended_class(monkeypatch):
    (node,) = ast.parse("class Mine(ZeroshotCLIP):\n    transfers: ClassVar[bool] = False").body
    monkeypatch.setitem(methods.classes(), "Mine", node)
    assert methods.from_source("Mine") == methods.Method("Mine", False, False, "Mine", "MINE")


def test_status_imports_nothing_slow(study_file, tmp_path):
    code = QUICK.format(file=str(study_file("status")))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("0 of 4 runs are done")


@pytest.mark.parametrize(("key", "value"), [("trainer", "MPL"), ("seed", 7), ("shots", 1), ("classes", "all")])
def test_status_refuses_results_of_other_runs(key, value, study_file):
    study = load(study_file("status"), settings=False)
    run = study.runs()[0]
    run.folder.mkdir(parents=True)
    own = {"trainer": "CoOp", "seed": 1, "shots": 4, "classes": "base", "accuracy": 50.0}
    (run.folder / "results.json").write_text(json.dumps(own))
    assert recorded_results(study) == {run: own}
    (run.folder / "results.json").write_text(json.dumps(own | {key: value}))
    with pytest.raises(UsageError, match=f"holds a run with .* {value}, this one has {own[key]}"):
        recorded_results(study)


def test_study_without_its_settings_checked_still_has_no_run_twice(study_file):
    file = study_file("twice", datasets=["small_land", "small_land"])
    with pytest.raises(UsageError, match="twice"):
        load(file, settings=False)
