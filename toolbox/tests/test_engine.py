"""Trainers: models, steps, the loop, evaluation and the files of a run."""

import time

import pytest
import torch
from dassl.utils import UsageError
from tiny_project import TinyPrompt, make_trainer


def files(directory):
    return sorted(path.name for path in directory.iterdir())


def test_third_party_project_trains_and_evaluates(root, tmp_path, capsys):
    trainer = make_trainer(root, tmp_path, "OPTIM.MAX_EPOCH", 3)
    start = time.monotonic()
    trainer.train()
    elapsed = time.monotonic() - start
    out = capsys.readouterr().out
    printed = [
        "Loading trainer: TinyPrompt",
        "Loading dataset: TinySquares",
        "No checkpoint found, train from scratch",
    ]
    printed += [
        "Finish training",
        "Deploy the last-epoch model",
        "Evaluate on the *test* set",
        "* accuracy: ",
    ]
    positions = [out.index(text) for text in (*printed, "Elapsed: 0:00:")]
    assert positions == sorted(positions)
    assert trainer.n_test == 12
    assert trainer.test_results["accuracy"] > 80
    assert trainer.train_seconds > 0 < trainer.test_seconds < elapsed
    assert files(tmp_path / "prompt_learner") == ["checkpoint", "model.pth.tar-3"]
    assert any((tmp_path / "tensorboard").glob("events.out.tfevents.*"))

    evaluated = make_trainer(root, tmp_path / "eval")
    evaluated.load_model(str(tmp_path), epoch=3)
    assert evaluated.test() == trainer.test_results["accuracy"]
    assert evaluated.test("val") == evaluated.test_results["accuracy"]
    with pytest.raises(FileNotFoundError):
        evaluated.load_model(str(tmp_path))  # without model-best.pth.tar
    evaluated.load_model("")
    evaluated.val_loader = None
    evaluated.test("val")
    out = capsys.readouterr().out
    assert "load_model() is skipped" in out and out.rindex(
        "Evaluate on the *test* set"
    ) > out.index("skipped")


@pytest.mark.parametrize(
    ("freq", "final", "expected"),
    [
        (0, "last_step", ["checkpoint", "model.pth.tar-4"]),
        (2, "last_step", ["checkpoint", "model.pth.tar-2", "model.pth.tar-4"]),
        (3, "best_val", ["checkpoint", "model-best.pth.tar", "model.pth.tar-3", "model.pth.tar-4"]),
    ],
)
def test_checkpoints_after_training(root, tmp_path, freq, final, expected, capsys):
    opts = ("OPTIM.MAX_EPOCH", 4, "TRAIN.CHECKPOINT_FREQ", freq, "TEST.FINAL_MODEL", final)
    trainer = make_trainer(root, tmp_path, *opts)
    seen = []
    after_epoch = trainer.after_epoch
    trainer.after_epoch = lambda: (after_epoch(), seen.append(files(tmp_path / "prompt_learner")))
    trainer.train()
    assert [f"model.pth.tar-{epoch}" in names for epoch, names in enumerate(seen, start=1)] == [
        True
    ] * 4
    assert files(tmp_path / "prompt_learner") == expected
    assert (tmp_path / "prompt_learner" / "checkpoint").read_text().strip() == "model.pth.tar-4"
    if final == "best_val":
        assert "Deploy the model with the best val performance" in capsys.readouterr().out


def test_a_trainer_without_a_step_is_tested_and_says_so(root, tmp_path, monkeypatch):
    """CoOp's ZeroshotCLIP is one."""
    monkeypatch.delattr(TinyPrompt, "forward_backward")
    trainer = make_trainer(root, tmp_path)
    trainer.test()
    with pytest.raises(UsageError, match=r"^TinyPrompt does not train: call its test\(\), or "):
        trainer.train()


def test_nan_loss_stops_the_run_and_keeps_the_last_checkpoint(root, tmp_path, monkeypatch):
    trainer = make_trainer(root, tmp_path)
    model = trainer.model.forward

    def forward(image):
        bad = trainer.epoch == 1 and trainer.batch_idx == 1
        return model(image) * (float("nan") if bad else 1.0)

    trainer.model.forward = forward
    words = (
        "^the loss is NaN at epoch 2, batch 2: lower OPTIM.LR; the checkpoint of epoch 1 is kept$"
    )
    with pytest.raises(FloatingPointError, match=words):
        trainer.train()
    assert files(tmp_path / "prompt_learner") == ["checkpoint", "model.pth.tar-1"]
    monkeypatch.setattr(type(trainer), "divergence_remedy", "use fp32")
    with pytest.raises(FloatingPointError, match="the loss is infinite at .*: use fp32"):
        trainer.detect_anomaly(torch.tensor(float("inf")))
    with pytest.raises(FloatingPointError, match="the loss is NaN"):
        trainer.detect_anomaly(torch.tensor([0.0, float("nan")]))
    trainer.detect_anomaly(torch.ones(4))
    trainer._unchecked = [(3, torch.tensor(float("nan")))]  # of a GPU: it is read later
    with pytest.raises(FloatingPointError, match="the loss is NaN"):
        trainer.save_model(1, tmp_path)
    assert files(tmp_path / "prompt_learner") == ["checkpoint", "model.pth.tar-1"]


def test_infinite_parameters_are_never_saved(root, tmp_path):
    trainer = make_trainer(root, tmp_path)
    # Values that are not trained may be infinite, such as attention masks.
    trainer.model.prompt_learner.register_buffer("mask", torch.tensor(float("-inf")))

    update_lr = trainer.update_lr  # at the end of an epoch

    def spoil():
        update_lr()
        if trainer.epoch == 1:
            trainer.model.prompt_learner.ctx.data[0, 0] = float("inf")

    trainer.update_lr = spoil
    with pytest.raises(
        FloatingPointError,
        match="ctx of prompt_learner is not finite at epoch 2: .* epoch 1 is kept",
    ):
        trainer.train()
    assert files(tmp_path / "prompt_learner") == ["checkpoint", "model.pth.tar-1"]
    assert trainer._writer is None  # its thread would write on
