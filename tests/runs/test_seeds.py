"""train.py with several seeds: their runs one after another, each as if it were alone."""

import os
import signal

import pytest
import yaml
from drawn import arguments, differing, prompts_in, results
from marks import times

from common.lock import LOCK, is_locked
from runs.arguments import parse_arguments
from trainers import methods

pytestmark = pytest.mark.slow


@pytest.fixture
def seeds(launch, eurosat, tiny, tmp_path):
    """`seeds("1", "2", ...)` runs train.py with these arguments after --seed, and with further
    ones.
    """

    def seeds(*numbers, output="seed{seed}", options=(), overrides=()):
        options = ["--output-dir", tmp_path / output, "--seed", *numbers, *options]
        overrides = ["DATALOADER.TRAIN_X.BATCH_SIZE", 4, *overrides]
        return launch(*arguments(eurosat, tiny, tmp_path, *overrides, options=options))

    return seeds


def test_several_seeds_are_bit_for_bit_the_runs_of_single_seeds(seeds, tmp_path):
    for seed in (1, 2):
        assert seeds(seed, output="alone{seed}").status == 0
    ended = seeds(1, 2)
    assert ended.status == 0, ended.errors
    for seed in (1, 2):
        own = tmp_path / f"seed{seed}"
        alone = tmp_path / f"alone{seed}"
        assert differing(prompts_in(own), prompts_in(alone)) == []
        others = dict.fromkeys(("train_seconds", "test_seconds", "date"))
        assert results(own) | others == results(alone) | others | {"seed": seed}
        config = yaml.safe_load((own / "config.yaml").read_text())
        assert (config["SEED"], config["OUTPUT_DIR"]) == (seed, str(own))
        assert (own / "log.txt").read_text().count("Finish training") == 1
    assert differing(prompts_in(tmp_path / "seed1"), prompts_in(tmp_path / "seed2"))
    assert ended.printed.index("Setting fixed seed: 1") < ended.printed.index(
        "Setting fixed seed: 2"
    )


def test_an_interrupt_ends_the_command_and_leaves_later_seeds_alone(seeds, monkeypatch, tmp_path):
    mpl = methods()["MPL"]
    step = mpl.training_step

    def interrupted(self, batch):
        if self.cfg.SEED == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch)

    monkeypatch.setattr(mpl, "training_step", interrupted)
    status, _, errors = seeds(1, 2, 3)
    assert status == 130 and "Interrupted" in errors[-1]
    assert (tmp_path / "seed1/results.json").is_file() and (
        tmp_path / "seed2/config.yaml"
    ).is_file()
    assert not (tmp_path / "seed3").exists() and not any(map(is_locked, tmp_path.glob("seed*")))
    monkeypatch.setattr(mpl, "training_step", step)
    again = seeds(1, 2, options=["--skip-finished"])
    assert (
        f"Already done (delete {tmp_path}/seed1" in again.printed
        and results(tmp_path / "seed2")["seed"] == 2
    )


def test_no_seed_starts_if_the_folder_of_one_holds_another_run(seeds, tmp_path):
    assert seeds(2).status == 0
    before = times(tmp_path)
    assert "seed2 holds a run with OPTIM.LR" in seeds(1, 2, overrides=["OPTIM.LR", 0.5]).error
    assert times(tmp_path) == before


WRONG = {
    "one seed in pairs": ([1, 2], "seed{seed}", ["SEED", 3], "SEED is one value for several seeds"),
    "unknown setting": (
        [1, 2],
        "seed{seed}",
        ["TRAINER.MPL.PROMPT_DEPTH", 99],
        "PROMPT_DEPTH is 99",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_seeds_get_one_line_and_leave_nothing(case, seeds, tmp_path):
    numbers, output, overrides, message = WRONG[case]
    assert message in seeds(*numbers, output=output, overrides=overrides).error
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {LOCK}


def test_seeds_and_pairs_are_distinguished():
    args = parse_arguments(["--seed", "3", "5", "OPTIM.LR", "0.1"])
    assert (args.seed, args.opts) == ((3, 5), ["OPTIM.LR", "0.1"])
    again = parse_arguments(["--seed", "3", "5", "--", "OPTIM.LR", "0.1"])
    assert (again.seed, again.opts) == (args.seed, args.opts)
    for text, seed in (("3", 3), ("-1", -1), ("1 2", (1, 2))):
        assert parse_arguments(["--seed", text, "OPTIM.LR", "0.1"]).seed == seed
