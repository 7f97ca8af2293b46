"""train.py with several seeds: folders, logs, results, resumption, and what goes wrong."""

import json
import math
import os
import shutil
import signal

import dassl.data.data_manager
import dassl.engine.base
import pytest
import torch
import yaml
from drawn import arguments
from filelock import FileLock

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


def state(folder):
    """Everything that a run has learned and drawn, by its last checkpoint."""
    content = torch.load(folder / f"MultiModalPromptLearner/model.pth.tar-{EPOCHS}", weights_only=False)
    content["run"].pop("train_seconds")
    return content


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_each_seed_has_a_folder_log_and_results_of_its_own(seeds, tmp_path):
    status, printed, errors = seeds(1, 2, 3)
    assert status == 0, errors
    for seed in (1, 2, 3):
        folder = tmp_path / f"seed{seed}"
        results = json.loads((folder / "results.json").read_text())
        assert (results["seed"], results["runs_together"]) == (seed, 3)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert (config["SEED"], config["OUTPUT_DIR"]) == (seed, str(folder))
        log = (folder / "log.txt").read_text()
        assert "Finish training" in log and "seed" not in log.split("Finish training")[1]
        assert f"seed {seed} | Finish training" in printed
    assert not same(state(tmp_path / "seed1"), state(tmp_path / "seed2"))


@pytest.fixture
def snapshots(monkeypatch, tmp_path):
    """Copies of the output folders after each checkpoint: what a kill at that moment leaves."""
    copies, save = [], dassl.engine.base.save_checkpoint

    def save_and_copy(*arguments, **options):
        save(*arguments, **options)
        copies.append(tmp_path / f"copies/{len(copies)}")
        for folder in sorted(tmp_path.glob("seed*")):
            shutil.copytree(folder, copies[-1] / folder.name)

    monkeypatch.setattr(dassl.engine.base, "save_checkpoint", save_and_copy)
    return copies


@pytest.mark.parametrize("killed", [*(pytest.param(k, marks=pytest.mark.thorough) for k in (1, 2, 4)), 3, 7])
def test_resume_after_kill_between_two_saves_is_bit_identical(killed, seeds, snapshots, tmp_path):
    """Of three seeds, one or two may have saved an epoch that the others have not."""
    assert seeds(1, 2, 3).status == 0
    unbroken = {seed: state(tmp_path / f"seed{seed}") for seed in (1, 2, 3)}
    results = {seed: json.loads((tmp_path / f"seed{seed}/results.json").read_text()) for seed in (1, 2, 3)}
    copy = snapshots[killed - 1]
    for seed in unbroken:
        shutil.rmtree(tmp_path / f"seed{seed}")
        shutil.copytree(copy / f"seed{seed}", tmp_path / f"seed{seed}")
    status, printed, errors = seeds(1, 2, 3)
    assert status == 0, errors
    assert ("Previous epoch" in printed) == (killed > 0)
    for seed, before in unbroken.items():
        assert same(before, state(tmp_path / f"seed{seed}"))
        again = json.loads((tmp_path / f"seed{seed}/results.json").read_text())
        assert again["accuracy"] == results[seed]["accuracy"]


def test_interrupted_seeds_resume_bit_for_bit(seeds, monkeypatch, tmp_path):
    """Ctrl-C in the second epoch, while one of the seeds runs."""
    assert seeds(1, 2).status == 0
    unbroken = {seed: state(tmp_path / f"seed{seed}") for seed in (1, 2)}
    for seed in unbroken:
        shutil.rmtree(tmp_path / f"seed{seed}")
    mpl = methods()["MPL"]
    loss = mpl.loss

    def interrupted_loss(self, images, labels):
        if (self.epoch, self.batch_idx, self.cfg.SEED) == (1, 1, 2):
            os.kill(os.getpid(), signal.SIGINT)
        return loss(self, images, labels)

    with monkeypatch.context() as patch:
        patch.setattr(mpl, "loss", interrupted_loss)
        status, _, errors = seeds(1, 2)
    assert status == 130 and "Interrupted" in errors[-1]
    assert not list(tmp_path.glob("seed*/.lock*"))
    assert seeds(1, 2).status == 0
    for seed, before in unbroken.items():
        assert same(before, state(tmp_path / f"seed{seed}"))


def test_finished_seeds_are_skipped_and_others_resume_from_their_own_epoch(seeds, snapshots, tmp_path):
    assert seeds(1).status == 0
    alone = state(tmp_path / "seed1")
    assert seeds(2).status == 0
    shutil.rmtree(tmp_path / "seed1")
    shutil.copytree(snapshots[1] / "seed1", tmp_path / "seed1")  # after two epochs
    date = json.loads((tmp_path / "seed2/results.json").read_text())["date"]
    status, printed, errors = seeds(1, 2, 3, options=["--skip-finished"])
    assert status == 0, errors
    assert "seed 2 | Already done" in printed and "seed 1 | Previous epoch: 2" in printed
    assert json.loads((tmp_path / "seed2/results.json").read_text())["date"] == date
    assert (tmp_path / "seed3/results.json").is_file()
    now = state(tmp_path / "seed1")["state_dict"]
    assert all(torch.allclose(now[key], value, atol=1e-4) for key, value in alone["state_dict"].items())


def test_no_seed_starts_if_the_folder_of_one_holds_another_run(seeds, tmp_path):
    assert seeds(2).status == 0
    status, _, errors = seeds(1, 2, overrides=["OPTIM.LR", 0.5])
    assert status == 2 and len(errors) == 1 and "seed2 holds a run with OPTIM.LR" in errors[0]
    assert not (tmp_path / "seed1").exists()


def test_a_seed_with_a_folder_in_use_does_not_stop_the_others(seeds, tmp_path):
    (tmp_path / "seed2").mkdir()
    with FileLock(tmp_path / "seed2/.lock"):
        status, printed, errors = seeds(1, 2)
    assert status == 2 and "seed 2 | Failed: another run is in" in printed
    assert errors[-1].startswith("error: another run is in")
    assert (tmp_path / "seed1/results.json").is_file() and not (tmp_path / "seed2/results.json").exists()


def test_a_diverging_seed_does_not_stop_the_others(seeds, monkeypatch, tmp_path):
    mpl = methods()["MPL"]
    loss = mpl.loss

    def diverging_loss(self, images, labels):
        value, *others = loss(self, images, labels)
        return value * (math.nan if self.cfg.SEED == 2 and self.epoch == 1 else 1), *others

    monkeypatch.setattr(mpl, "loss", diverging_loss)
    status, _, errors = seeds(1, 2, 3)
    assert status == 2
    assert errors[-3].startswith("seed 2 failed: the loss is NaN at epoch 2, batch 1")
    assert errors[-1].startswith("error: the loss is NaN at epoch 2, batch 1")
    assert [(tmp_path / f"seed{seed}/results.json").is_file() for seed in (1, 2, 3)] == [True, False, True]


def test_a_method_with_its_own_gradient_runs_one_seed_after_another(seeds, monkeypatch, tmp_path):
    assert seeds(1, output="alone/seed1").status == 0
    monkeypatch.setattr(methods()["MPL"], "backward", lambda self, loss, parts: loss.backward())
    status, printed, errors = seeds(1, 2)
    assert status == 0, errors
    assert "without self.autograd (docs/methods.md): its seeds run one after another" in printed
    assert same(state(tmp_path / "alone/seed1"), state(tmp_path / "seed1"))
    assert (tmp_path / "seed2/results.json").is_file()


def test_tests_of_several_seeds_decode_each_image_once(seeds, monkeypatch, tmp_path):
    assert seeds(1, 2, output="seed1").status == 0
    read, paths = dassl.data.data_manager.read_image, []
    monkeypatch.setattr(
        dassl.data.data_manager, "read_image", lambda path, *rest: paths.append(path) or read(path, *rest)
    )
    status, _, errors = seeds(1, 2, output="new/seed1", options=["--eval-only", "--model-dir", tmp_path / "seed1"])
    assert status == 0, errors
    assert len(paths) == len(set(paths)) == 24
    for seed in (1, 2):
        trained, tested = (
            json.loads((tmp_path / f"{part}seed{seed}/results.json").read_text()) for part in ("", "new/")
        )
        assert trained["accuracy"] == tested["accuracy"]


def test_the_best_epoch_on_validation_is_each_seeds_own(seeds, eurosat, tmp_path):
    best = ["TEST.FINAL_MODEL", "best_val", "OPTIM.LR", 0.05]
    for seed in (1, 2):
        assert seeds(seed, output="alone/seed{seed}", overrides=best).status == 0
    assert seeds(1, 2, overrides=best).status == 0
    for seed in (1, 2):
        a, b = (
            torch.load(folder / f"seed{seed}/MultiModalPromptLearner/model-best.pth.tar", weights_only=False)
            for folder in (tmp_path / "alone", tmp_path)
        )
        assert (a["epoch"], a["val_result"]) == (b["epoch"], b["val_result"])
        assert torch.equal(a["run"]["rng"]["torch"], b["run"]["rng"]["torch"])


WRONG = {
    "twice": ([1, 1], "seed{seed}", [], "--seed has a seed twice: 1 1"),
    "negative": (["1 -1"], "seed{seed}", [], "--seed has -1: give several seeds from 0 on"),
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
