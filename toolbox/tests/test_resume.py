"""An interrupted and resumed run is bit-identical to an uninterrupted one."""

import operator
import os
import re
from pathlib import Path

import pytest
import torch
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import load_checkpoint
from tiny_project import TinyPrompt, flat, make_trainer
from torch import nn


class Killed(BaseException):
    """Raised to end a run as a kill of its process would."""


def cut_off(trainer, epoch, batch_idx):
    """Train until the given batch (from 0) of the given epoch (from 0), then raise `Killed`."""
    forward_backward = trainer.forward_backward

    def dying(batch):
        losses = forward_backward(batch)
        if (trainer.epoch, trainer.batch_idx) == (epoch, batch_idx):
            raise Killed
        return losses

    trainer.forward_backward = dying
    with pytest.raises(Killed):
        trainer.train()
    trainer.close_writer()
    if iterator := getattr(trainer.train_loader_x, "_iterator", None):
        # The garbage collector, which finds it in a cycle, would wait 5 s for each worker
        iterator._shutdown_workers()


def assert_same(one, other):
    one = flat(one)
    other = flat(other)
    # The time, and the list of files to delete
    varying = re.compile("/run/(train_seconds|transient)")
    for key in one.keys() | other.keys():
        if not varying.match(key):
            same = torch.equal if isinstance(one[key], torch.Tensor) else operator.eq
            assert same(one[key], other[key]), key


def assert_same_folders(one, other):
    """All files of checkpoints are the same."""
    assert sorted(os.listdir(one)) == sorted(os.listdir(other))
    for file in one.glob("model*"):
        assert_same(load_checkpoint(file), load_checkpoint(other / file.name))


def test_gradient_scaler_and_state_of_subclass_are_restored(root, tmp_path):
    class Averaging(TinyPrompt):
        average = 0.0

        def run_state(self):
            return super().run_state() | {"average": self.average}

        def load_run_state(self, state):
            super().load_run_state(state)
            self.average = state["average"]

    TRAINER_REGISTRY.register(Averaging, force=True)
    saved, resumed = (make_trainer(root, tmp_path, "TRAINER.NAME", "Averaging") for _ in range(2))
    saved.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    resumed.scaler = torch.amp.GradScaler("cpu")
    saved.scaler.scale(torch.ones(1))  # the scale is set on first use
    saved.average = 0.75
    saved.best_result = 12.5
    saved.save_model(1, str(tmp_path))
    assert resumed.resume_model_if_exist(str(tmp_path)) == 2
    assert (resumed.scaler.get_scale(), resumed.average, resumed.best_result) == (8.0, 0.75, 12.5)


def test_resume_from_another_folder_deletes_nothing(root, tmp_path):
    cut_off(make_trainer(root, tmp_path / "old"), epoch=1, batch_idx=0)
    before = sorted(os.listdir(tmp_path / "old/prompt_learner"))
    (tmp_path / "new/prompt_learner").mkdir(parents=True)
    (tmp_path / "new/prompt_learner/model.pth.tar-1").write_bytes(b"of another run")
    trainer = make_trainer(root, tmp_path / "new", "RESUME", str(tmp_path / "old"))
    trainer.train()
    assert trainer.start_epoch == 1
    assert sorted(os.listdir(tmp_path / "old/prompt_learner")) == before
    assert sorted(os.listdir(tmp_path / "new/prompt_learner")) == [
        "checkpoint",
        "model.pth.tar-1",
        "model.pth.tar-3",
    ]


@pytest.mark.parametrize("kept", [True, False])
def test_resume_from_another_folder_takes_over_its_best_epoch(root, tmp_path, kept):
    """With the result alone, an epoch that was not better left the folder without a model to
    deploy.
    """
    opts = ("TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", 3)
    cut_off(make_trainer(root, tmp_path / "old", *opts), epoch=2, batch_idx=0)
    old, new = (tmp_path / run / "prompt_learner/model-best.pth.tar" for run in ("old", "new"))
    best = load_checkpoint(old)["epoch"]
    if not kept:
        old.unlink()
    trainer = make_trainer(
        root, tmp_path / "new", *opts, "RESUME", str(tmp_path / "old"), "OPTIM.LR", 0.0
    )
    accuracy = trainer.test
    trainer.test = lambda split=None: min(accuracy(split), 1.0)  # worse than before
    trainer.train()
    assert trainer.loaded_epoch == load_checkpoint(new)["epoch"] == (best if kept else 3)


@TRAINER_REGISTRY.register(force=True)
class TwoModels(TinyPrompt):
    """A trainer with a second registered model."""

    def build_model(self):
        super().build_model()
        self.extra = nn.Linear(2, 2)
        self.register_model("extra", self.extra, torch.optim.SGD(self.extra.parameters(), 0.1))


@pytest.mark.slow
@pytest.mark.parametrize("final", ["last_step", "best_val"])
def test_run_killed_at_any_step_of_saving_leaves_nothing_behind(
    root, tmp_path, monkeypatch, capsys, final
):
    """It is killed when it renames or deletes a file for the n-th time; the next start completes
    the rest.
    """
    opts = ("TRAINER.NAME", "TwoModels", "OPTIM.MAX_EPOCH", 2, "TEST.FINAL_MODEL", final)
    monkeypatch.setattr(os, "fsync", lambda file: None)
    make_trainer(root, tmp_path / "full", *opts).train()

    def killed(folder, calls):
        left = iter(range(calls))

        def dying(real):
            def call(*args):
                if next(left, None) is None:
                    raise Killed
                real(*args)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying(os.replace))
            patch.setattr(os, "remove", dying(os.remove))
            # A killed process does not
            patch.setattr(Path, "unlink", lambda path, missing_ok: None)
            try:
                make_trainer(root, folder, *opts).train()
            except Killed:
                return True
        return False

    calls = 0
    while killed(tmp_path / str(calls), calls):
        make_trainer(root, tmp_path / str(calls), *opts).train()
        for name in ("prompt_learner", "extra"):
            assert_same_folders(tmp_path / "full" / name, tmp_path / str(calls) / name)
        calls += 1
    assert calls == {"last_step": 10, "best_val": 14}[final]
    assert "the newest epoch that all models have is 1" in capsys.readouterr().out
