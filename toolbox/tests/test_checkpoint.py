"""Checkpoints: atomic writes, published checkpoints load, hostile ones execute nothing."""

import errno
import os
import subprocess
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from dassl.config import get_cfg_default
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import (
    MissingFileError,
    UsageError,
    load_checkpoint,
    load_pretrained_weights,
    resume_from_checkpoint,
    save_checkpoint,
)


def optim_cfg(**options):
    cfg = get_cfg_default().OPTIM
    cfg.merge_from_list(["NAME", "sgd", "LR", 0.01, "MAX_EPOCH", 8, "LR_SCHEDULER", "cosine"])
    cfg.merge_from_list(["WARMUP_EPOCH", 1, "WARMUP_TYPE", "constant"])
    cfg.merge_from_list([item for pair in options.items() for item in pair])
    return cfg


def training(**options):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = build_optimizer(model, optim_cfg(**options))
    return model, optimizer, build_lr_scheduler(optimizer, optim_cfg(**options))


def run_epochs(model, optimizer, scheduler, epochs):
    rates = []
    for epoch in epochs:
        optimizer.zero_grad()
        model(torch.full((4, 3), float(epoch + 1))).square().mean().backward()
        optimizer.step()
        scheduler.step()
        rates.append((scheduler.get_last_lr(), optimizer.param_groups[0]["lr"]))
    return rates


def state_of(model, optimizer, scheduler, epoch):
    return {
        "state_dict": model.state_dict(),
        "epoch": epoch,
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "val_result": None,
    }


# ---------------------------------------------------------------- writing


def test_file_names_and_the_newest_checkpoint(tmp_path):
    model, optimizer, scheduler = training()
    folder = tmp_path / "run" / "model"
    save_checkpoint(state_of(model, optimizer, scheduler, 3), str(folder))
    assert (folder / "checkpoint").read_text() == "model.pth.tar-3\n"
    save_checkpoint(state_of(model, optimizer, scheduler, 4), str(folder), is_best=True)
    save_checkpoint(state_of(model, optimizer, scheduler, 5), str(folder), model_name="mine.pth")
    assert (folder / "checkpoint").read_text() == "mine.pth\n"
    names = ["checkpoint", "mine.pth", "model-best.pth.tar", "model.pth.tar-3", "model.pth.tar-4"]
    assert sorted(os.listdir(folder)) == names
    assert load_checkpoint(folder / "model-best.pth.tar")["epoch"] == 4


def test_module_prefix_is_removed_from_the_file_only(tmp_path):
    state = {"state_dict": OrderedDict({"module.weight": torch.ones(2)}), "epoch": 1}
    save_checkpoint(state, tmp_path)
    assert list(state["state_dict"]) == ["module.weight"]
    assert list(load_checkpoint(tmp_path / "model.pth.tar-1")["state_dict"]) == ["weight"]
    save_checkpoint(state, tmp_path, remove_module_from_keys=False)
    assert list(load_checkpoint(tmp_path / "model.pth.tar-1")["state_dict"]) == ["module.weight"]


def test_saving_unsupported_objects_warns(tmp_path):
    with pytest.warns(UserWarning, match="pathlib"):
        save_checkpoint({"state_dict": {}, "epoch": 1, "where": Path("x")}, tmp_path)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_failed_write_changes_nothing(tmp_path, monkeypatch, failing):
    model, optimizer, scheduler = training()
    save_checkpoint(state_of(model, optimizer, scheduler, 1), tmp_path, is_best=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def no_space(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, failing, no_space)
    with torch.no_grad():
        model.weight.zero_()
    for epoch in (1, 2):  # replacing a file, and as a new file
        with pytest.raises(OSError, match=rf"No space left.*{tmp_path}/model.pth.tar-{epoch}"):
            save_checkpoint(state_of(model, optimizer, scheduler, epoch), tmp_path, is_best=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# ---------------------------------------------------------------- resuming


@pytest.mark.parametrize("options", [{}, {"WARMUP_EPOCH": -1}, {"WARMUP_TYPE": "linear", "WARMUP_EPOCH": 3}])
@pytest.mark.parametrize("schedule", [{}, {"LR_SCHEDULER": "multi_step", "STEPSIZE": (2, 5)}])
@pytest.mark.parametrize("stop", [1, 5])
def test_resume_is_bit_identical(tmp_path, options, schedule, stop):
    options = options | schedule
    full = training(**options)
    rates = run_epochs(*full, range(8))

    first = training(**options)
    run_epochs(*first, range(stop))
    save_checkpoint(state_of(*first, stop), tmp_path)
    second = training(**options)
    with torch.no_grad():
        second[0].weight.zero_()
    start = resume_from_checkpoint(tmp_path, *second)
    assert start == stop
    assert second[2].get_last_lr() == first[2].get_last_lr()
    assert run_epochs(*second, range(start, 8)) == rates[start:]
    assert torch.equal(full[0].weight, second[0].weight)


def test_resume_without_a_checkpoint_is_an_error(tmp_path):
    model = torch.nn.Linear(3, 2)
    with pytest.raises(MissingFileError, match="names a checkpoint"):
        resume_from_checkpoint(tmp_path, model)
    (tmp_path / "checkpoint").write_text("model.pth.tar-7\n")
    with pytest.raises(UsageError, match="model.pth.tar-7"):
        resume_from_checkpoint(tmp_path, model)
    (tmp_path / "checkpoint").write_text("")
    with pytest.raises(UsageError, match="does not exist"):
        resume_from_checkpoint(tmp_path, model)


@pytest.mark.parametrize("stop", [1, 4])
def test_published_checkpoint_resumes(tmp_path, stop):
    """In its scheduler's state are an object of torch's, and the optimiser to which that refers."""
    rates = run_epochs(*training(), range(8))
    old = training()
    run_epochs(*old, range(stop))
    state = state_of(*old, stop)
    state["scheduler"]["successor"] = old[2].successor
    torch.save(state, tmp_path / f"model.pth.tar-{stop}")
    (tmp_path / "checkpoint").write_text(f"model.pth.tar-{stop}\n")

    successor = load_checkpoint(tmp_path / f"model.pth.tar-{stop}")["scheduler"]["successor"]
    assert not isinstance(successor, torch.optim.lr_scheduler.LRScheduler)
    assert successor.T_max == 8.0 and successor.optimizer.param_groups[0]["momentum"] == 0.9

    new = training()
    assert resume_from_checkpoint(tmp_path, *new) == stop
    assert new[2].successor.optimizer is new[1]
    assert run_epochs(*new, range(stop, 8)) == rates[stop:]


# ---------------------------------------------------------------- hostile and damaged files


class Call:
    """Pickles as a call of ``function(*args)``."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda mark: Call(os.system, f"touch {mark}"), "system"),
        (lambda mark: Call(eval, f"open({str(mark)!r}, 'w')"), "eval"),
        (lambda mark: Call(subprocess.call, ["touch", str(mark)]), "call"),
        (lambda mark: Call(Path(mark).touch), "PosixPath"),
    ],
    ids=["os.system", "eval", "subprocess", "bound method"],
)
def test_hostile_pickle_executes_nothing(tmp_path, call, named):
    mark, path = tmp_path / "mark", tmp_path / "model.pth.tar-1"
    torch.save({"state_dict": {}, "epoch": call(mark)}, path)
    with pytest.raises(UsageError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert not mark.exists()
    assert named in message and str(path) in message and "\n" not in message
    torch.load(path, weights_only=False)  # check that the file is hostile
    assert mark.exists()


@pytest.mark.parametrize("content", [b"", b"<html>404 Not Found</html>", b"PK\x03\x04 zip?", b"\x80\x02N."])
def test_other_kind_of_file_is_refused(tmp_path, content):
    path = tmp_path / "model-best.pth.tar"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="not a whole checkpoint"):
        load_checkpoint(path)


def test_missing_file_or_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="not a regular file"):
        load_checkpoint(tmp_path)


# ---------------------------------------------------------------- pretrained weights


def test_load_pretrained_weights_by_name_and_shape(tmp_path, capsys):
    torch.manual_seed(0)
    source, target = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    weights = {f"module.{key}": value for key, value in source.state_dict().items()}
    weights["module.bias"] = torch.zeros(5)
    weights["extra"] = torch.zeros(1)
    torch.save({"state_dict": weights}, tmp_path / "a.pth")
    bias = target.bias.clone()
    load_pretrained_weights(target, tmp_path / "a.pth")
    assert torch.equal(target.weight, source.weight) and torch.equal(target.bias, bias)
    printed = capsys.readouterr().out
    assert "Successfully loaded" in printed and "['bias', 'extra']" in printed

    torch.save(source.state_dict(), tmp_path / "b.pth")  # a bare state dict
    load_pretrained_weights(target, tmp_path / "b.pth")
    assert torch.equal(target.bias, source.bias)
    with pytest.warns(UserWarning, match="no weights loaded"):
        load_pretrained_weights(torch.nn.Linear(4, 4), tmp_path / "b.pth")
