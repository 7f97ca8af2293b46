"""train.py with several seeds: their runs one after another, each as if it were alone."""

import gc
import json
import os
import signal
import weakref
from multiprocessing import get_context

import pytest
import torch
import yaml
from drawn import arguments

from experiments import run
from experiments.arguments import parse_arguments
from trainers import methods

pytestmark = pytest.mark.slow

EPOCHS = 3


@pytest.fixture
def seeds(launch, eurosat, tiny, tmp_path):
    """`seeds("1", "2", ...)` runs train.py with these arguments after --seed, and with further ones."""

    def seeds(*numbers, output="seed{seed}", options=(), overrides=()):
        options = ["--output-dir", tmp_path / output, "--seed", *numbers, *options]
        few = ["OPTIM.MAX_EPOCH", EPOCHS, "DATALOADER.TRAIN_X.BATCH_SIZE", 4, *overrides]
        return launch(*arguments(eurosat, tiny, tmp_path, *few, options=options))

    return seeds


def checkpoint(folder):
    """Everything that a run has learned and drawn, by its last checkpoint."""
    content = torch.load(folder / f"MultiModalPromptLearner/model.pth.tar-{EPOCHS}", weights_only=False)
    content["run"].pop("train_seconds")
    return content


def results(folder):
    found = json.loads((folder / "results.json").read_text())
    return {key: value for key, value in found.items() if key not in ("train_seconds", "test_seconds", "date")}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture
def alone(seeds, tmp_path):
    """The folders of the runs of seeds 1 and 2, each by a command of its own."""
    for seed in (1, 2):
        assert seeds(seed, output="alone{seed}").status == 0
    return {seed: tmp_path / f"alone{seed}" for seed in (1, 2)}


@pytest.fixture
def at_step(monkeypatch):
    """`at_step(SEED, EPOCH, function)` calls a function in the second step of an epoch of a seed."""
    mpl = methods()["MPL"]
    loss = mpl.loss

    def at_step(seed, epoch, function):
        def noticed_loss(self, images, labels):
            value, *others = loss(self, images, labels)
            if (self.cfg.SEED, self.epoch, self.batch_idx) == (seed, epoch, 1):
                value = function(value)
            return value, *others

        monkeypatch.setattr(mpl, "loss", noticed_loss)

    return at_step


def test_several_seeds_are_bit_for_bit_the_runs_of_single_seeds(seeds, alone, tmp_path):
    status, printed, errors = seeds(1, 2)
    assert status == 0, errors
    for seed, folder in alone.items():
        own = tmp_path / f"seed{seed}"
        assert same(checkpoint(own), checkpoint(folder)) and results(own) == results(folder)
        assert results(own)["seed"] == seed
        config = yaml.safe_load((own / "config.yaml").read_text())
        assert (config["SEED"], config["OUTPUT_DIR"]) == (seed, str(own))
        log = (own / "log.txt").read_text()
        assert log.count("Finish training") == 1
    assert not same(checkpoint(alone[1])["state_dict"], checkpoint(alone[2])["state_dict"])
    assert printed.index("Setting fixed seed: 1") < printed.index("Setting fixed seed: 2")


@pytest.mark.thorough
@pytest.mark.skipif(torch.cuda.is_available(), reason="a process that has used CUDA cannot fork")
def test_resume_after_a_kill_in_the_second_seed_is_bit_identical(seeds, alone, at_step, tmp_path):
    at_step(2, 1, lambda loss: os.kill(os.getpid(), signal.SIGKILL))
    killed = get_context("fork").Process(target=seeds, args=(1, 2))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert (tmp_path / "seed1/results.json").is_file() and not (tmp_path / "seed2/results.json").exists()
    at_step(None, None, None)
    status, printed, errors = seeds(1, 2, options=["--skip-finished"])
    assert status == 0, errors
    assert f"Already done (delete {tmp_path}/seed1" in printed and printed.count("Previous epoch: 1") == 1
    for seed, folder in alone.items():
        own = tmp_path / f"seed{seed}"
        assert same(checkpoint(own), checkpoint(folder)) and results(own) == results(folder)


def test_an_interrupt_ends_the_command_and_leaves_later_seeds_alone(seeds, at_step, tmp_path):
    at_step(2, 1, lambda loss: os.kill(os.getpid(), signal.SIGINT))
    status, _, errors = seeds(1, 2, 3)
    assert status == 130 and "Interrupted" in errors[-1]
    assert (tmp_path / "seed1/results.json").is_file() and (tmp_path / "seed2/config.yaml").is_file()
    assert not (tmp_path / "seed3").exists() and not list(tmp_path.glob("seed*/.lock*"))


def test_no_seed_starts_if_the_folder_of_one_holds_another_run(seeds, tmp_path):
    assert seeds(2).status == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    status, _, errors = seeds(1, 2, overrides=["OPTIM.LR", 0.5])
    assert status == 2 and len(errors) == 1 and "seed2 holds a run with OPTIM.LR" in errors[0]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_each_seed_tests_its_own_prompts(seeds, tmp_path):
    assert seeds(1, 2, output="seed1").status == 0
    options = ["--quiet", "--eval-only", "--model-dir", tmp_path / "seed1"]
    status, printed, errors = seeds(1, 2, output="new/seed1", options=options)
    assert status == 0, errors
    for seed, line in zip((1, 2), printed.splitlines(), strict=True):
        trained, tested = (results(tmp_path / f"{part}seed{seed}") for part in ("", "new/"))
        assert trained["accuracy"] == tested["accuracy"]
        assert line.startswith(f"MPL on EuroSAT 2 shots seed {seed}: {tested['accuracy']:.2f}%")


def test_memory_of_a_run_is_free_when_the_next_one_starts(seeds, monkeypatch):
    trainers, build = [], run.build_trainer

    def build_in_a_cycle(cfg):
        assert not any(trainer() for trainer in trainers)
        trainer = build(cfg)
        trainer.itself = trainer
        trainers.append(weakref.ref(trainer))
        return trainer

    monkeypatch.setattr(run, "build_trainer", build_in_a_cycle)
    gc.disable()
    try:
        assert seeds(1, 2).status == 0
    finally:
        gc.enable()
    assert len(trainers) == 2


WRONG = {
    "twice": ([1, 1], "seed{seed}", [], "--seed is 1 1: give each seed once, from 0 on"),
    "negative": (["1 -1"], "seed{seed}", [], "--seed is 1 -1: give each seed once"),
    "one folder": ([1, 2], "run", [], "is one folder for several seeds: put {seed} in it, as in output/seed{seed}"),
    "one seed in pairs": ([1, 2], "seed1", ["SEED", 3], "SEED is one value for several seeds"),
    "one folder in pairs": ([1, 2], "seed1", ["OUTPUT_DIR", "x"], "OUTPUT_DIR is one value for several seeds"),
    "unknown setting": ([1, 2], "seed1", ["TRAINER.MPL.PROMPT_DEPTH", 99], "PROMPT_DEPTH is 99"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_seeds_get_one_line_and_leave_nothing(case, seeds, tmp_path):
    numbers, output, overrides, message = WRONG[case]
    status, _, errors = seeds(*numbers, output=output, overrides=overrides)
    assert status == 2 and len(errors) == 1 and message in errors[0]
    assert not list(tmp_path.glob("*seed*")) and not (tmp_path / "run").exists()


def test_seeds_and_pairs_are_distinguished():
    args = parse_arguments(["--seed", "3", "5", "OPTIM.LR", "0.1"])
    assert (args.seed, args.opts) == ((3, 5), ["OPTIM.LR", "0.1"])
    assert parse_arguments(["--seed", "3", "OPTIM.LR", "0.1"]).seed == 3
    assert parse_arguments(["--seed", "-1"]).seed == -1
    assert parse_arguments(["--seed", "1 2"]).seed == (1, 2)


@pytest.mark.parametrize("text", ["1,2", "", "1.0", "all"])
def test_what_is_not_a_seed_is_refused_with_the_form_to_use(text, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--seed", text])
    assert f"expected integers with spaces between them, got {text!r}" in capsys.readouterr().err
