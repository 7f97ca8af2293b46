"""A study with `together: seeds` executes the runs of all seeds as one job."""

from concurrent.futures import Future

import pytest
from finished import figures, finish

from common.errors import UsageError
from experiments.studies.executor import TRIES, LocalExecutor, execute_runs
from experiments.studies.study_file import load
from experiments.studies.worker import WorkerDied


class Noted:
    """Notes the jobs, and executes them by a function: runs -> their errors."""

    def __init__(self, execute):
        self.jobs, self.execute = [], execute

    def slots(self):
        return 1

    def submit(self, *runs):
        self.jobs.append([(run.variant.name, run.seed, run.classes) for run in runs])
        done = Future()
        try:
            done.set_result(self.execute(runs))
        except WorkerDied as error:
            done.set_exception(error)
        return done

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass


@pytest.fixture
def study(study_file):
    return load(study_file("together", trainers={"CoOp": "small", "MPL": "small"}, seeds=[3, 1], together="seeds"))


def job(name, classes, *seeds):
    return [(name, seed, classes) for seed in seeds]


def test_each_job_has_the_runs_of_all_seeds(study):
    noted = Noted(lambda runs: [None] * len(runs))
    assert execute_runs(study.sequences(), noted, "jobs") == {}
    assert noted.jobs == [job(name, classes, 1, 3) for name in ("CoOp", "MPL") for classes in ("base", "new")]


def test_a_failed_run_ends_its_own_sequence_only(study):
    noted = Noted(lambda runs: ["no memory" if (run.seed, run.variant.name) == (1, "CoOp") else None for run in runs])
    failed = execute_runs(study.sequences(), noted, "jobs")
    assert [(run.variant.name, run.seed, run.classes) for run in failed] == [("CoOp", 1, "base")]
    assert noted.jobs[:2] == [job("CoOp", "base", 1, 3), job("CoOp", "new", 3)]


def test_finished_runs_are_left_out(study):
    finish(next(run for run in study.runs() if (run.variant.name, run.seed) == ("CoOp", 3)), 50.0)
    noted = Noted(lambda runs: [None] * len(runs))
    execute_runs(study.sequences(), noted, "jobs")
    assert job("CoOp", "base", 1) in noted.jobs
    assert sorted(sum(noted.jobs, [])) == sorted(
        (run.variant.name, run.seed, run.classes) for run in study.runs() if not (run.folder / "results.json").exists()
    )


def test_the_last_try_after_deaths_of_the_process_is_made_alone(study):
    def die(runs):
        if any((run.variant.name, run.seed) == ("CoOp", 1) for run in runs):
            raise WorkerDied("out of memory")
        return [None] * len(runs)

    noted = Noted(die)
    failed = execute_runs(study.sequences(), noted, "jobs")
    assert [(run.variant.name, run.seed, run.classes) for run in failed] == [("CoOp", 1, "base")]
    tried = [jobs for jobs in noted.jobs if jobs[0][0] == "CoOp" and jobs[0][2] == "base"]
    assert tried[: TRIES - 1] == [job("CoOp", "base", 1, 3)] * (TRIES - 1)
    assert sorted(tried[TRIES - 1 :]) == [job("CoOp", "base", 1), job("CoOp", "base", 3)]


def test_without_the_key_each_run_is_a_job(study_file):
    study, noted = load(study_file("alone", seeds=[1, 2])), Noted(lambda runs: [None] * len(runs))
    execute_runs(study.sequences(), noted, "jobs")
    assert {len(jobs) for jobs in noted.jobs} == {1} and len(noted.jobs) == 8


def test_another_value_of_the_key_is_refused(study_file):
    with pytest.raises(UsageError, match="there is no value of the key together 'methods'"):
        load(study_file("wrong", together="methods"))


@pytest.mark.slow
def test_a_study_of_seeds_together_has_the_figures_of_one_without(study_file):
    quick = {"OPTIM.MAX_EPOCH": 2, "DATALOADER.NUM_WORKERS": 0}
    trainers = {name: {"config": "small", "overrides": quick} for name in ("MPL", "ZeroshotCLIP")}
    together, alone = (
        load(study_file(name, trainers=trainers, seeds=[1, 2], **key))
        for name, key in (("together", {"together": "seeds"}), ("alone", {}))
    )
    for study in (together, alone):
        assert execute_runs(study.sequences(), LocalExecutor(1), "study") == {}
    a, b = figures(together), figures(alone)
    assert a.keys() == b.keys() and len(a) == 8
    for folder, figure in a.items():
        assert abs(figure["accuracy"] - b[folder]["accuracy"]) <= 1.0, folder  # a prediction or two, of rounding
        assert figure["n_test"] == b[folder]["n_test"]
