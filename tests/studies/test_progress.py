"""The key `choose` of a study: trials, the choice, and the runs with it."""

import json
from itertools import product

import pytest
from dassl.data.datasets import DATASET_REGISTRY
from drawn import cfg_from, results, write_eurosat
from finished import InThisProcess, finish, phase
from marks import of_json, one_line

from common.results import read_results
from studies import command as study_command
from studies import run as execution
from studies.plan import load
from studies.progress import Progress, decide
from studies.study import RULES
from studies.tables import MARK

pytestmark = pytest.mark.slow

RATES = {"OPTIM.LR": [0.1, 0.02]}
VALIDATION, HELD_OUT, LEAVE_ONE_OUT, ORACLE = RULES


@pytest.fixture
def chosen(study_file):
    """`chosen(by, keys, **settings)` -> a study file with a choice for CoOp; zero-shot CLIP has
    none.
    """

    def chosen(by=VALIDATION, keys=RATES, output="out", **settings):
        trainers = {"CoOp": {"config": "small"}, "ZeroshotCLIP": {"config": "small"}}
        return study_file(
            output, **{"choose": {"keys": keys, "by": by}, "trainers": trainers} | settings
        )

    return chosen


def finish_trials(study, accuracy):
    """Write made-up results of all trials; `accuracy(run)` is in percent."""
    for run in study.trials():
        tested = phase(dataset=run.dataset, split=study.choose.rule.split, classes=run.classes)
        tested |= {"sha256": f"{run.seed}".zfill(64), "evaluations": 1}
        finish(run, accuracy(run), data_use={"test": tested})


def choice(study, number=0):
    return of_json(study.searches[number].file)


def test_datasets_without_validation_images_are_refused_before_any_run(
    chosen, tmp_path, stand_in, monkeypatch
):
    write_eurosat(tmp_path / "data", ["red", "blue"], train=4, val=0, test=2)
    root = {"root": str(tmp_path / "data"), "datasets": ["eurosat"]}
    on_validation, held_out = (
        load(chosen(by, output=by, **root), settings=False) for by in (VALIDATION, HELD_OUT)
    )
    with one_line("eurosat has no validation images to choose on"):
        execution.check_datasets(on_validation)
    execution.check_datasets(held_out)
    monkeypatch.setattr(DATASET_REGISTRY.get("EuroSAT"), "val_is_test", True)
    with one_line("2 of 2 validation images of eurosat are test images"):
        execution.check_datasets(on_validation)
    execution.check_datasets(held_out)


def test_trials_are_runs_with_the_values_and_the_images_of_the_rule(chosen):
    keys = RATES | {"OPTIM.WEIGHT_DECAY": [0.0, 0.1, 0.2]}
    expected = {
        VALIDATION: ("val", False),
        HELD_OUT: ("val", True),
        LEAVE_ONE_OUT: ("test", False),
        ORACLE: ("test", False),
    }
    folders = {}
    for by, images in expected.items():
        study = load(
            chosen(by, keys, seeds=[1, 2], datasets=["small_land", "small_counts"]), settings=False
        )
        trials = study.trials()
        assert len(trials) == 2 * 3 * 2 * 2 and {run.classes for run in trials} == {"base"}
        for run in trials[:3]:
            cfg = cfg_from(*run.arguments)
            assert images == (cfg.TEST.SPLIT, cfg.DATASET.HOLD_OUT)
            values = str(cfg.OPTIM.LR), str(cfg.OPTIM.WEIGHT_DECAY)
            assert run.values == ("OPTIM.LR", values[0], "OPTIM.WEIGHT_DECAY", values[1])
        folders[by] = {run.folder for run in trials}
    assert folders[LEAVE_ONE_OUT] == folders[ORACLE]
    assert not folders[VALIDATION] & (folders[HELD_OUT] | folders[ORACLE])


@pytest.mark.parametrize(
    ("percents", "best"),  # of 0.1 with two seeds, then of 0.02
    [
        ((60, 50, 55, 56), "0.02"),  # the mean over seeds
        ((60, 50, 50, 60), "0.1"),  # a tie: the first value
        ((60, 50, 50, 60.0000001), "0.1"),  # but for rounding
    ],
)
def test_one_choice_for_all_seeds(chosen, percents, best):
    accuracies = dict(zip(product(("0.1", "0.02"), (1, 2)), percents, strict=True))
    study = load(chosen(seeds=[1, 2]), settings=False)
    assert len(decide(study)) == 1 and not study.searches[0].file.exists()
    finish_trials(study, lambda run: accuracies[run.values[1], run.seed])
    assert "4 of 12 runs are done" in str(Progress(study))
    assert decide(study) == [] and choice(study)["settings"] == {"OPTIM.LR": best}
    facts = "what", "split", "images", "test_images"
    records = [[each[fact] for fact in facts] for each in choice(study)["choices"]]
    assert records == 2 * [["OPTIM.LR", "val", 40, 0]]  # the images of each seed
    cfgs = [cfg_from(*run.arguments) for run in study.runs() if run.variant.name == "CoOp"]
    assert {cfg.OPTIM.LR for cfg in cfgs} == {float(best)}


@pytest.mark.parametrize(
    ("by", "best"), [(LEAVE_ONE_OUT, ["0.02", "0.1", "0.1"]), (VALIDATION, ["0.1", "0.02", "0.02"])]
)
def test_left_out_dataset_has_the_choice_of_the_others(by, best, chosen):
    names = ["small_land", "small_counts", "small_shapes"]
    study = load(chosen(by, datasets=names, protocols="few_shot"), settings=False)
    # The value that is better on each
    likes = dict(zip(names, ["0.1", "0.02", "0.02"], strict=True))
    finish_trials(study, lambda run: 60 if run.values[1] == likes[run.dataset] else 50)
    assert decide(study) == []
    assert [choice(study, number)["settings"]["OPTIM.LR"] for number in range(3)] == best
    records = choice(study)["choices"]
    expected = {*names[1:]} if by == LEAVE_ONE_OUT else {names[0]}
    assert {each["dataset"] for each in records} == expected
    facts = {(each["split"], each["test_images"], each["by"]) for each in records}
    assert facts == {(study.choose.rule.split, 0, by)}


def test_another_choice_keeps_the_trials_and_changes_only_what_depends_on_it(chosen):
    def folders(**settings):
        study = load(chosen(**settings), settings=False)
        base = [run for run in study.runs() if run.seed == 1 and run.classes == "base"]
        of_method = {run.variant.name: run.folder for run in base}
        return {run.folder for run in study.trials()}, of_method

    trials, runs = folders()
    more = {"keys": {"OPTIM.LR": [0.1, 0.02, 0.5]}}
    for change in (more, {"keys": {"OPTIM.LR": [0.02, 0.1]}}, {"seeds": [1, 2]}):
        trials_now, now = folders(**change)
        assert trials_now >= trials and now["CoOp"] != runs["CoOp"]
        assert now["ZeroshotCLIP"] == runs["ZeroshotCLIP"]
    assert folders(by=ORACLE)[1]["CoOp"] != runs["CoOp"]
    # The same choice of other runs
    assert folders(shots=8)[1]["CoOp"].parts[-6] == runs["CoOp"].parts[-6]


def test_a_damaged_choice_or_trial_has_a_one_line_error(chosen, launch, command):
    file = chosen()
    study = load(file, settings=False)
    finish_trials(study, lambda run: 50)
    decide(study)
    made = study.searches[0].file
    content = choice(study)
    made.unlink()
    line = study.runs()[0].arguments
    assert f"there is no {made}: tools/study.py run writes it" in launch(*line).error
    for damage in ("{", [], content | {"choices": [{"what": "x"}]}, content | {"settings": 1}):
        made.write_text(damage if isinstance(damage, str) else json.dumps(damage))
        assert str(made) in launch(*line).error
    trial = study.trials()[0].folder / "results.json"
    trial.write_text(trial.read_text().replace('"val"', '"test"'))
    error = command(study_command, "run", file, "--workers", 1).error
    assert "not say that it was tested on val images" in error


# Real runs

QUICK = {
    "OPTIM.MAX_EPOCH": 2,
    "TRAIN.CHECKPOINT_FREQ": 1,
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.SIZE": "(32, 32)",
}
BY_TEST = {"by": ORACLE, "keys": {"OPTIM.LR": [0.002, 30.0]}, "protocols": "base2new"}


@pytest.fixture
def executed(chosen, eurosat, tiny, command, monkeypatch):
    """`executed(command, by, ...)` -> the study, after a command whose runs take place in this
    process.
    """

    monkeypatch.setattr(study_command, "choose_executor", lambda study, args: InThisProcess(1))

    def executed(name, by, keys=RATES, **settings):
        usual = {
            "trainers": {"CoOp": {"config": "small", "overrides": QUICK}},
            "backbone": str(tiny),
            "shots": 2,
        }
        usual |= {"root": str(eurosat), "datasets": ["eurosat"], "protocols": "few_shot"}
        file = chosen(by, keys, **usual | settings)
        done = command.works(study_command, name, file)
        return load(file, settings=False), done.printed

    return executed


def test_a_study_from_trials_to_tables(executed, launch):
    """Test images choose, so that everything has the mark. New classes take no part in the
    choice.
    """
    study, _ = executed("run", **BY_TEST)
    trials = {run.values[1]: read_results(run.folder).accuracy for run in study.trials()}
    best = max(trials, key=trials.get)
    base, new = (results(run.folder) for run in study.runs())
    assert base["accuracy"] == trials[best] and choice(study)["settings"] == {"OPTIM.LR": best}
    expected = {"what": "OPTIM.LR", "classes": "base", "split": "test", "trials": 2, "by": ORACLE}
    for card in (base["data_use"], new["data_use"]):
        (record,) = card["choose"]
        assert record.items() >= expected.items()
        assert record["test_images"] == record["images"] == 12
        assert card["settings"]["a choice"] == ["OPTIM.LR"]
        assert str(card["settings"]).count("'OPTIM.LR'") == 1
    honest = "TEST.SELECT_ON_TEST", False
    first, second = (list(run.arguments) for run in study.runs())
    error = launch(*first, "OUTPUT_DIR", study.output / "again", *honest).error
    assert "chosen on 12 images, all of them test images of EuroSAT (base classes)" in error
    without = first.index("--chosen")
    launch.works(*first[:without], *first[without + 2 :], "OUTPUT_DIR", study.output / "plain")
    # Which was learned without the choice
    second[second.index("--model-dir") + 1] = study.output / "plain"
    second += ["OUTPUT_DIR", study.output / "test"]
    assert "leave out --chosen" in launch(*second, *honest).error
    launch.works(*second)
    assert results(study.output / "test")["data_use"]["choose"] == new["data_use"]["choose"]
    _, printed = executed("tables", **BY_TEST)
    assert f"| CoOp {MARK} | LR {best} (of 2) |" in printed
    assert f"| CoOp | {trials[best]:.2f} {MARK} |" in printed
