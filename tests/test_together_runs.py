"""train.py with several seeds: folders, logs, results, resumption, and what goes wrong."""

import json
import shutil

import dassl.engine.base
import pytest
import torch
import yaml
from drawn import arguments

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
        assert json.loads((folder / "results.json").read_text())["seed"] == seed
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


@pytest.mark.parametrize("killed", [1, 2, 3, 4, 7])
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
