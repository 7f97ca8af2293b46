"""A study evaluates a method that learns nothing once for all seeds."""

import json
import shutil

import pytest

from common.errors import UsageError
from experiments.results import read_results
from experiments.studies import executor
from experiments.studies.executor import execute_runs
from experiments.studies.progress import Progress
from experiments.studies.reuse import adopt, evaluated_once
from experiments.studies.study_file import load
from experiments.studies.worker import execute_run

pytestmark = pytest.mark.slow


class Here:
    """Runs in this process, one at a time."""

    def __init__(self):
        self.executed = []

    def slots(self):
        return 1

    def submit(self, run):
        self.executed.append(run)
        done = executor.Future()
        done.set_result([execute_run(run.arguments)])
        return done

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass


@pytest.fixture
def zero_shot(study_file):
    quick = {"DATALOADER.NUM_WORKERS": 0}
    trainers = {"ZeroshotCLIP": {"config": "small", "overrides": quick}}
    return load(study_file("zero", trainers=trainers, seeds=[1, 2, 3]))


def test_other_seeds_have_the_results_of_the_first(zero_shot):
    here = Here()
    assert execute_runs(zero_shot.sequences(), here, "zero") == {}
    assert [(run.seed, run.classes) for run in here.executed] == [(1, "base"), (1, "new")]
    progress = Progress.read(zero_shot)  # which also compares their settings with the study's
    assert len(progress.done) == 6
    for run, found in progress.results.items():
        (of,) = (other for other in here.executed if other.classes == run.classes)
        assert found["seed"] == run.seed
        assert found.get("evaluated_in") == (None if run is of or run.seed == 1 else str(of.folder))
        assert (found["accuracy"], found["n_test"]) == tuple(
            read_results(of.folder)[key] for key in ("accuracy", "n_test")
        )


def test_what_the_first_seed_would_compute_itself(zero_shot):
    """The results of a seed that is executed are those that it is given."""
    base, _, again, *_ = (run for sequence in evaluated_once(zero_shot.sequences()) for run in sequence)
    assert execute_run(base.arguments) is None and adopt(again, base) is None
    given = read_results(again.folder)
    shutil.rmtree(again.folder)
    assert execute_run(again.arguments) is None
    own = read_results(again.folder)
    same = ("accuracy", "error_rate", "macro_f1", "n_test", "seed", "classes", "trainer", "dataset", "shots", "epochs")
    assert {key: given[key] for key in same} == {key: own[key] for key in same}


def test_only_missing_seeds_are_filled_in(zero_shot):
    execute_runs(zero_shot.sequences(), Here(), "zero")
    shutil.rmtree(zero_shot.sequences()[1][1].folder)
    here = Here()
    assert execute_runs(zero_shot.sequences(), here, "zero") == {} and not here.executed
    assert len(Progress.read(zero_shot).done) == 6


def test_results_of_another_study_are_not_given(zero_shot):
    execute_runs(zero_shot.sequences()[:1], Here(), "zero")
    file = zero_shot.sequences()[0][0].folder / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"shots": 1}))
    failed = execute_runs(zero_shot.sequences(), Here(), "zero")
    assert {run.seed for run in failed} == {2} and "holds a run with" in next(iter(failed.values()))


def test_learning_runs_stay_as_they_are(study_file):
    study = load(study_file("all", seeds=[1, 2]))
    assert evaluated_once(study.sequences()) == study.sequences()
    assert all(run.same_as is None for sequence in evaluated_once(study.sequences()) for run in sequence)


@pytest.mark.thorough
def test_runs_with_a_shared_cache_have_the_results_of_runs_without(study_file, tmp_path):
    accuracies = []
    for output, settings in (("plain", {}), ("cached", {"cache": str(tmp_path / "cache")})):
        study = load(study_file(output, seeds=[1, 2], **settings))
        assert execute_runs(study.sequences(), Here(), output) == {}
        found = Progress.read(study).results
        accuracies.append([(run.variant.name, run.seed, run.classes, found[run]["accuracy"]) for run in study.runs()])
    assert accuracies[0] == accuracies[1]
    # MPL has prompts in the image tower: its runs share images only.
    kinds = [file.name.partition("-")[0] for file in sorted((tmp_path / "cache").iterdir())]
    assert kinds == ["features"] * 2 + ["images"] * 2  # of base and of new classes


def test_cache_of_a_study_is_a_folder(study_file):
    assert load(study_file("none", cache=None)).cache is None
    study = load(study_file("some", cache="~/there"))
    assert study.cache.is_absolute() and str(study.cache) in study.runs()[0].arguments
    for value in ("", "-x", 3.5, ["a"]):
        with pytest.raises(UsageError, match="cache is .*: give the path of a folder"):
            load(study_file("bad", cache=value))
