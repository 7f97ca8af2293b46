"""Checkpoints: atomic writes, published checkpoints load, hostile ones execute nothing."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from dassl.config import get_cfg_default
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import (
    UsageError,
    load_checkpoint,
    load_pretrained_weights,
    resume_from_checkpoint,
    save_checkpoint,
)
from tiny_project import Call

from common.torch_files import DamagedError, read_torch_file

OPTIM = {"NAME": "sgd", "LR": 0.01, "MAX_EPOCH": 8, "LR_SCHEDULER": "cosine", "WARMUP_EPOCH": 1}


def training(**options):
    """A model, its optimiser and its scheduler."""
    cfg = get_cfg_default().OPTIM
    for pair in {**OPTIM, "WARMUP_TYPE": "constant", **options}.items():
        cfg.merge_from_list(pair)
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = build_optimizer(model, cfg)
    return model, optimizer, build_lr_scheduler(optimizer, cfg)


def run_epochs(model, optimizer, scheduler, epochs):
    rates = []
    for epoch in epochs:
        optimizer.zero_grad()
        model(torch.full((4, 3), float(epoch + 1))).square().mean().backward()
        optimizer.step()
        scheduler.step()
        rates.append((scheduler.get_last_lr(), optimizer.param_groups[0]["lr"]))
    return rates


def state_of(parts, epoch):
    names = "state_dict", "optimizer", "scheduler"
    return {name: part.state_dict() for name, part in zip(names, parts, strict=True)} | {
        "epoch": epoch
    }


# Writing


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_failed_write_changes_nothing(tmp_path, monkeypatch, failing):
    parts = training()
    save_checkpoint(state_of(parts, 1), tmp_path, is_best=True)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def no_space(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, failing, no_space)
    run_epochs(*parts, range(1))
    for epoch in (1, 2):  # replacing a file, and as a new file
        with pytest.raises(OSError, match=rf"No space left.*{tmp_path}/model.pth.tar-{epoch}"):
            save_checkpoint(state_of(parts, epoch), tmp_path, is_best=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# Resuming


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_state_of_another_optimiser_is_refused(tmp_path, name):
    """torch loads it, and the next step ends in a traceback or makes the weights NaN."""
    whole = training(NAME=name)
    run_epochs(*whole, range(2))
    entries = whole[1].state_dict()["state"][0]
    for key, value in entries.items():
        for other in (
            value[None],
            value.reshape(-1).repeat(2),
            torch.full_like(value, torch.nan),
            value.bool(),
            "a",
        ):
            state = state_of(whole, 2)
            state["optimizer"]["state"][0] = entries | {key: other}
            save_checkpoint(state, tmp_path)
            with pytest.raises(UsageError, match=f"optimizer of the checkpoint .*{key}"):
                resume_from_checkpoint(tmp_path, *training(NAME=name))


def test_resume_without_the_name_of_a_checkpoint_is_an_error(tmp_path):
    for content in (
        None,
        b"\n",
        b"model.pth.tar-7\n",
        b"\xff\xfe\x00\x01",
        b"../other/model.pth.tar-1",
        b"/etc/passwd",
    ):
        if content is not None:
            (tmp_path / "checkpoint").write_bytes(content)
        with pytest.raises(UsageError, match="checkpoint"):
            resume_from_checkpoint(tmp_path, torch.nn.Linear(3, 2))


# The settings of a warm-up in the state of its scheduler, there and in this project's first version
WARMUPS = {"constant": {"cons_lr": 1e-5}, "linear": {"min_lr": 1e-5}}


@pytest.mark.parametrize("kind", WARMUPS)
@pytest.mark.parametrize("stop", [1, 4])
def test_published_checkpoint_resumes(tmp_path, stop, kind):
    """In its scheduler's state are an object of torch's, and the optimiser to which that refers."""
    options = {"WARMUP_TYPE": kind, "WARMUP_EPOCH": 2}
    rates = run_epochs(*training(**options), range(8))
    old = training(**options)
    run_epochs(*old, range(stop))
    state = state_of(old, stop)
    assert not {"first", "is_linear"} & state["scheduler"].keys()
    state["scheduler"] |= WARMUPS[kind] | {"successor": old[2].successor}
    torch.save(state, tmp_path / f"model.pth.tar-{stop}")
    (tmp_path / "checkpoint").write_text(f"model.pth.tar-{stop}\n")

    successor = load_checkpoint(tmp_path / f"model.pth.tar-{stop}")["scheduler"]["successor"]
    assert not isinstance(successor, torch.optim.lr_scheduler.LRScheduler)
    assert successor.T_max == 8.0 and successor.optimizer.param_groups[0]["momentum"] == 0.9

    with pytest.raises(DamagedError, match="CosineAnnealingLR"):
        read_torch_file(tmp_path / f"model.pth.tar-{stop}")  # without the stubs

    new = training(**options)
    assert resume_from_checkpoint(tmp_path, *new) == stop
    assert new[2].successor.optimizer is new[1]
    assert run_epochs(*new, range(stop, 8)) == rates[stop:]


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_resume_on_another_device_steps_as_this_run_does(tmp_path, monkeypatch, name):
    """With the flag of a checkpoint of a CPU, a fused optimiser refused the first step of a
    GradScaler.
    """
    saved = training(NAME=name)
    run_epochs(*saved, range(1))
    save_checkpoint(state_of(saved, 1), tmp_path)
    monkeypatch.setattr("dassl.optim.optimizer._on_cuda", lambda groups: True)
    model, optimizer, scheduler = training(NAME=name)
    resume_from_checkpoint(tmp_path, model, optimizer, scheduler)
    before = model.weight.clone()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.ones(1, 3)).sum()).backward()
    scaler.step(optimizer)
    assert optimizer.param_groups[0]["fused"] and not torch.equal(model.weight, before)


# Hostile files


CALLS = {
    "system": lambda mark: Call(os.system, f"touch {mark}"),
    "eval": lambda mark: Call(eval, f"open({str(mark)!r}, 'w')"),
    "getattr": lambda mark: Call(Path(mark).touch),  # a bound method
}


@pytest.mark.parametrize("named", CALLS)
def test_hostile_pickle_executes_nothing(tmp_path, named):
    mark = tmp_path / "mark"
    path = tmp_path / "model.pth.tar-1"
    torch.save({"state_dict": {}, "epoch": CALLS[named](mark)}, path)
    with pytest.raises(UsageError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert not mark.exists()
    assert named in message and str(path) in message and "\n" not in message
    torch.load(path, weights_only=False)  # check that the file is hostile
    assert mark.exists()


def test_threads_read_published_checkpoints_at_once(tmp_path):
    """The names that torch's loader accepts are those of the process: one thread took them from
    another.
    """
    torch.save({"scheduler": training()[2].successor}, tmp_path / "a")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(load_checkpoint, [tmp_path / "a"] * 40))
    assert all(content["scheduler"].T_max == 8.0 for content in found)


def test_other_kind_of_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zip").write_bytes(b"PK\x03\x04 zip?")
    for place, words in (
        ("zip", "not a whole checkpoint"),
        ("pipe", "not a regular file"),
        (".", "not a regular file"),
    ):
        with pytest.raises(UsageError, match=words):
            load_checkpoint(tmp_path / place)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_checkpoint(tmp_path / "nowhere")


# Pretrained weights


def test_load_pretrained_weights_by_name_and_shape(tmp_path, capsys):
    torch.manual_seed(0)
    source = torch.nn.Linear(3, 2)
    target = torch.nn.Linear(3, 2)
    weights = {f"module.{key}": value for key, value in source.state_dict().items()}
    weights["module.bias"] = torch.zeros(5)
    weights["extra"] = torch.zeros(1)
    weights["object"] = torch.optim.SGD([torch.zeros(1)])  # with attributes that the file chooses
    weights["object"].shape = None
    torch.save({"state_dict": weights}, tmp_path / "a.pth")
    bias = target.bias.clone()
    load_pretrained_weights(target, tmp_path / "a.pth")
    assert torch.equal(target.weight, source.weight) and torch.equal(target.bias, bias)
    printed = capsys.readouterr().out
    assert "Successfully loaded" in printed and "['bias', 'extra', 'object']" in printed

    torch.save(source.state_dict(), tmp_path / "b.pth")  # a bare state dict
    load_pretrained_weights(target, tmp_path / "b.pth")
    assert torch.equal(target.bias, source.bias)
    with pytest.warns(UserWarning, match="no weights loaded"):
        load_pretrained_weights(torch.nn.Linear(4, 4), tmp_path / "b.pth")
