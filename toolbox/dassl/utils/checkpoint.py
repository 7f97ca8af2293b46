"""Checkpoints: written atomically with a checksum, and read without executing code that a file
names.
"""

import io
import numbers
import os
import re
import warnings
from collections import OrderedDict
from contextlib import suppress
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from common.checkpoints import is_checkpoint, newest_name
from common.errors import MissingFileError, UsageError, one_line
from common.files import PARTIAL, write_bytes
from common.torch_files import DamagedError, read_torch_file, sealed

from .logger import print_detail
from .tools import mkdir_if_missing

# Entries of an optimiser's groups that choose how it computes a step
KERNELS = (
    "fused",
    "foreach",
    "capturable",
)
# Of a state that does not fit
LOAD_ERRORS = (
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
)


class PickledObject:
    """Replaces a pickled optimiser or scheduler: has its attributes and no behaviour."""


def _plain_dict(factory, *content):
    """Replaces ``collections.defaultdict``."""
    return dict(*content)


# The published Dassl pickles schedulers, which refer to the optimiser.
OPTIMISERS = "sgd.SGD adam.Adam adamw.AdamW rmsprop.RMSprop radam.RAdam"
SCHEDULERS = "StepLR MultiStepLR CosineAnnealingLR LambdaLR"
WARMUPS = "ConstantWarmupScheduler LinearWarmupScheduler"
STUBS = {
    "dassl.optim.radam.RAdam": PickledObject,
    "collections.defaultdict": _plain_dict,
    "builtins.dict": dict,
}
STUBS |= {f"torch.optim.{name}": PickledObject for name in OPTIMISERS.split()}
STUBS |= {f"torch.optim.lr_scheduler.{name}": PickledObject for name in SCHEDULERS.split()}
STUBS |= {f"dassl.optim.lr_scheduler.{name}": PickledObject for name in WARMUPS.split()}


def _strip_module(state_dict):
    """``state_dict`` without the ``module.`` prefix that ``nn.DataParallel`` adds to each name."""
    return OrderedDict((key.removeprefix("module."), value) for key, value in state_dict.items())


def save_checkpoint(state, save_dir, is_best=False, remove_module_from_keys=True, model_name=""):
    """Save a training state as ``<save_dir>/model.pth.tar-<epoch>`` and name it in
    ``<save_dir>/checkpoint``.

    Args:
        state (dict): ``state_dict``, ``epoch``, and usually ``optimizer``, ``scheduler``,
            ``val_result``. Tensors and plain values only; other objects are saved with a warning,
            because load_checkpoint refuses them.
        save_dir (str): the folder; created if it is missing.
        is_best (bool): also write ``model-best.pth.tar``.
        remove_module_from_keys (bool): remove ``module.`` (of ``nn.DataParallel``) from the keys of
            ``state_dict``.
        model_name (str): a file name to use instead of ``model.pth.tar-<epoch>``.

    Raises OSError, which names the file that could not be written (disk full, no permission).
    Others are unchanged.
    """
    if remove_module_from_keys:
        state = {**state, "state_dict": _strip_module(state["state_dict"])}
    buffer = io.BytesIO()  # so that a pickling error leaves the previous checkpoint as it is
    torch.save(state, buffer)
    content = sealed(buffer.getvalue())
    mkdir_if_missing(save_dir)
    folder = Path(save_dir)
    names = [
        model_name or f"model.pth.tar-{state['epoch']}",
        *(["model-best.pth.tar"] if is_best else []),
    ]
    for name in names:
        write_bytes(folder / name, content)
        print_detail(f"Checkpoint saved to {folder / name}")
    write_bytes(folder / "checkpoint", f"{names[0]}\n".encode())
    buffer.seek(0)
    if objects := torch.serialization.get_unsafe_globals_in_checkpoint(buffer):
        warnings.warn(
            f"load_checkpoint will refuse the checkpoint, which holds {', '.join(objects)}",
            stacklevel=2,
        )


def load_checkpoint(fpath):
    """The state in a checkpoint, ours or of the published Dassl, on the CPU; no code that it names
    is executed.

    Pickled schedulers and optimisers become objects that have their attributes and no behaviour.
    Raises UsageError if the file is missing, damaged or not a checkpoint, or contains something
    other than tensors and plain values, which the message names.
    """
    if not os.path.exists(fpath):
        raise MissingFileError(
            f'there is no checkpoint at "{fpath}": check the folder and the epoch'
        )
    if not os.path.isfile(fpath):  # reading a pipe would never end
        raise UsageError(f'"{fpath}" is not a regular file: give the file of a checkpoint')
    try:
        if os.fspath(fpath).endswith(".safetensors"):  # tensors alone
            return {"state_dict": load_file(fpath), "epoch": 0}
        return read_torch_file(Path(fpath), STUBS)
    except (DamagedError, SafetensorError, OSError) as error:
        fault = (
            f'"{fpath}" is not a whole checkpoint ({one_line(error)}): '
            "it is damaged or another kind of file"
        )
        raise UsageError(f"{fault}; use the checkpoint of another epoch or train again") from error


def load_training_state(fpath):
    """:func:`load_checkpoint`, for what :func:`save_checkpoint` saves of a training run: UsageError
    for all else.
    """
    content = load_checkpoint(fpath)
    kinds = {"optimizer": dict, "scheduler": dict, "run": dict, "val_result": numbers.Real}
    if not is_checkpoint(content) or not all(
        isinstance(content.get(key), kind | None) for key, kind in kinds.items()
    ):
        raise UsageError(f'"{fpath}" is not a checkpoint of a training run: use another one')
    return content


def newest_checkpoint(folder):
    """The path of the checkpoint that the text file ``checkpoint`` in a folder names; None if there
    is no such file. Raises UsageError if the text file does not name a file of this folder, or one
    that does not exist.
    """
    name = newest_name(folder)
    if name is None:
        return None
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        raise MissingFileError(
            f"{folder}/checkpoint names {path}, which does not exist; restore it or delete {folder}"
        )
    return path


def load_newest(directory, names):
    """The checkpoints, {name: dict}, of the newest epoch that all models of an output directory
    have, else None.

    If a run was killed between saving one model and the next, their newest checkpoints are of
    different epochs. Raises UsageError if one is missing or damaged.
    """
    paths = {name: newest_checkpoint(os.path.join(directory, name)) for name in names}
    if not names or None in paths.values():
        return None
    checkpoints = {name: load_training_state(path) for name, path in paths.items()}
    epoch = min(checkpoint["epoch"] for checkpoint in checkpoints.values())
    for name in names:
        if checkpoints[name]["epoch"] != epoch:
            print(
                f"The last save was interrupted: the newest epoch that all models have is {epoch}"
            )
            checkpoints[name] = load_training_state(
                os.path.join(directory, name, f"model.pth.tar-{epoch}")
            )
    return checkpoints


def remove_stale(folder, epochs):
    """Delete from a folder of checkpoints those of some epochs, and what killed processes have not
    finished.

    No other process may write there.
    """
    stale = {f"model.pth.tar-{epoch}" for epoch in epochs}
    if os.path.isdir(folder) and not os.path.islink(folder):  # a link may lead to another run
        for entry in list(os.scandir(folder)):
            named = entry.name in stale or re.fullmatch(PARTIAL, entry.name)
            if named and not entry.is_dir(follow_symlinks=False):
                with suppress(FileNotFoundError):
                    os.remove(entry.path)


def resume_from_checkpoint(fdir, model, optimizer=None, scheduler=None):
    """Load the newest checkpoint of a folder into a model, and its optimiser and scheduler if given
    and saved.

    Returns the number of finished epochs, which is the epoch (from 0) to resume from. Raises
    UsageError if the folder has no checkpoint, or it cannot be loaded.
    """
    print(f'Loading checkpoint from "{fdir}"')
    path = newest_checkpoint(fdir)
    if path is None:
        raise MissingFileError(
            f"no file {os.path.join(fdir, 'checkpoint')} that names a checkpoint: check the folder"
        )
    checkpoint = load_training_state(path)
    restore(checkpoint, path, model, optimizer, scheduler)
    print(f"Previous epoch: {checkpoint['epoch']}")
    return checkpoint["epoch"]


def restore(checkpoint, name, model, optimizer=None, scheduler=None):
    """Load the parts of a training state into a module and, if given and saved, its optimiser and
    scheduler.

    Raises UsageError if a part does not fit, or a learned tensor is not finite; ``name`` is that of
    the checkpoint.
    """
    # save_checkpoint removes its prefix
    model = model.module if isinstance(model, nn.DataParallel) else model
    check_finite(
        checkpoint["state_dict"],
        dict(model.named_parameters()),
        f"state_dict of the checkpoint {name}",
    )
    for key, target in {
        "state_dict": model,
        "optimizer": optimizer,
        "scheduler": scheduler,
    }.items():
        state = checkpoint.get(key)
        if target is None or state is None:
            continue
        try:
            if target is not model:
                state = _fitting_state(target, state)
            target.load_state_dict(state)
        except LOAD_ERRORS as error:
            fault = f"the {key} of the checkpoint {name} does not fit this run ({one_line(error)})"
            raise UsageError(
                f"{fault}; use the settings that it was trained with, or another OUTPUT_DIR"
            ) from error
        print(f"Loaded {key}")


def check_finite(state, names, what):
    """Raise UsageError if one of these tensors of a state dict, a learned one, has a value that is
    not finite.
    """
    for name in names:
        if name in state and not torch.isfinite(state[name]).all():
            raise UsageError(
                f"{name} of the {what} is not finite: use the checkpoint of another epoch, or "
                "train again"
            )


def _fitting_state(target, state):
    """A state of an optimiser or a scheduler with the entries of this run's.

    An optimiser keeps this run's `KERNELS`: a checkpoint may be of another device.
    """
    current = target.state_dict()
    if not isinstance(target, torch.optim.Optimizer):
        return matching_entries(current, state)
    groups = []
    for this_group, group in zip(current["param_groups"], state["param_groups"], strict=True):
        kernels = {key: this_group[key] for key in KERNELS if key in this_group}
        groups.append(matching_entries(this_group, group) | kernels)
    parameters = list(chain(*(group["params"] for group in target.param_groups)))
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if not _is_state_of(parameters[index], key, value):
                raise ValueError(f"state.{index}.{key} has another form")
    return {"state": state["state"], "param_groups": groups}


def _is_state_of(parameter, key, value):
    """Whether an entry of an optimiser's state is a number, or a finite tensor of the parameter's
    shape.
    """
    if not isinstance(value, torch.Tensor):
        return (
            isinstance(value, numbers.Real)
            if key == "step"
            else value is None and key == "momentum_buffer"
        )
    shape = torch.Size() if key == "step" else parameter.shape
    if value.layout != torch.strided or not value.is_floating_point():
        return False
    return value.shape == shape and bool(torch.isfinite(value).all())


def matching_entries(current, saved):
    """The entries of a state in a checkpoint that `current`, what this run would save now, has.

    Flags (None or a bool in `current`) and private entries may be missing, because they differ
    between versions of torch. The values of `current` are used then. Raises ValueError if another
    one is missing.
    """
    saved = vars(saved) if isinstance(saved, PickledObject) else saved
    if not isinstance(current, dict):
        return saved
    entries = {}
    for key, value in current.items():
        if key in saved:
            entries[key] = matching_entries(value, saved[key])
        elif isinstance(value, bool | None) or str(key).startswith("_"):
            entries[key] = value
        else:
            raise ValueError(f"it has no {key}")
    return type(current)(entries)


def load_pretrained_weights(model, weight_path):
    """Load the weights of a checkpoint or a state dict that match the model's by name and shape;
    print the others. Raises UsageError if the file cannot be loaded."""
    checkpoint = load_checkpoint(weight_path)
    weights = (
        checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else checkpoint
    )
    if not isinstance(weights, dict) or not all(isinstance(key, str) for key in weights):
        raise UsageError(
            f'"{weight_path}" contains a {type(weights).__name__}, not a state dict: '
            "give another file"
        )
    weights = _strip_module(weights)
    current = model.state_dict()
    shapes = {key: value.shape for key, value in current.items()}
    tensors = {key: value for key, value in weights.items() if isinstance(value, torch.Tensor)}
    matched = {key: value for key, value in tensors.items() if value.shape == shapes.get(key)}
    if not matched:
        warnings.warn(
            f"no weights loaded from {weight_path}: none has a name and shape of the model's",
            stacklevel=2,
        )
        return
    check_finite(matched, matched, f'file "{weight_path}"')
    model.load_state_dict({**current, **matched})
    print(f"Successfully loaded pretrained weights from {weight_path}")
    if discarded := [key for key in weights if key not in matched]:
        print(f"Layers discarded due to unmatched keys or size: {discarded}")
