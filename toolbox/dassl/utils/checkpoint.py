"""Checkpoints: written atomically with a checksum, and read without executing code that a file names."""

import copy
import io
import numbers
import os
import re
import warnings
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from common.errors import MissingFileError, UsageError
from common.files import PARTIAL, write_bytes

from .logger import print_detail
from .tools import mkdir_if_missing
from .torch_files import DamagedError, PickledObject, read_torch_file, sealed

LONGEST_NAME = 255  # bytes
LARGEST = 2**53  # number in a state: integers are exact as floats up to here
KERNELS = ("fused", "foreach", "capturable")  # entries of an optimiser's groups that choose how it computes a step
DIVISORS = ("T_max", "step_size", "scale")  # entries of schedulers and of torch.amp.GradScaler that are not 0
# Of a state that does not fit
LOAD_ERRORS = (RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError)


def _strip_module(state_dict):
    """``state_dict`` without the ``module.`` prefix that ``nn.DataParallel`` adds to each name."""
    return OrderedDict((key.removeprefix("module."), value) for key, value in state_dict.items())


def save_checkpoint(state, save_dir, is_best=False, remove_module_from_keys=True, model_name=""):
    """Save a training state as ``<save_dir>/model.pth.tar-<epoch>`` and name it in ``<save_dir>/checkpoint``.

    Args:
        state (dict): ``state_dict``, ``epoch``, and usually ``optimizer``, ``scheduler``, ``val_result``. Tensors and
            plain values only; other objects are saved with a warning, because load_checkpoint refuses them.
        save_dir (str): the folder; created if it is missing.
        is_best (bool): also write ``model-best.pth.tar``.
        remove_module_from_keys (bool): remove ``module.`` (of ``nn.DataParallel``) from the keys of ``state_dict``.
        model_name (str): a file name to use instead of ``model.pth.tar-<epoch>``.

    Raises:
        OSError: names the file that could not be written (disk full, no permission). Earlier files are unchanged.
    """
    if remove_module_from_keys:
        state = {**state, "state_dict": _strip_module(state["state_dict"])}
    buffer = io.BytesIO()  # so that a pickling error leaves the previous checkpoint as it is
    torch.save(state, buffer)
    content = sealed(buffer.getvalue())
    mkdir_if_missing(save_dir)
    folder = Path(save_dir)
    names = [model_name or f"model.pth.tar-{state['epoch']}", *(["model-best.pth.tar"] if is_best else [])]
    for name in names:
        write_bytes(folder / name, content)
        print_detail(f"Checkpoint saved to {folder / name}")
    write_bytes(folder / "checkpoint", f"{names[0]}\n".encode())
    try:
        read_torch_file(folder / names[0])
    except DamagedError as error:
        warnings.warn(f"load_checkpoint will refuse the checkpoint ({error})", stacklevel=2)


def load_checkpoint(fpath):
    """The state in a checkpoint, ours or of the published Dassl, on the CPU; no code that it names is executed.

    Pickled schedulers and optimisers become objects that have their attributes and no behaviour.

    Raises:
        UsageError: the file is missing, damaged or not a checkpoint, or contains something other than tensors and
            plain values, which the message names.
    """
    if not os.path.exists(fpath):
        raise MissingFileError(f'there is no checkpoint at "{fpath}": check the folder and the epoch')
    if not os.path.isfile(fpath):  # reading a pipe would never end
        raise UsageError(f'"{fpath}" is not a regular file: give the file of a checkpoint')
    try:
        return read_torch_file(fpath)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can make the unpickler raise nearly anything
        reason = error if isinstance(error, DamagedError) else type(error).__name__
        raise UsageError(
            f'"{fpath}" is not a whole checkpoint ({reason}): it is damaged or another kind of file; '
            "use the checkpoint of another epoch or train again"
        ) from error


def load_training_state(fpath):
    """:func:`load_checkpoint`, for what :func:`save_checkpoint` saves of a training run: UsageError for all else."""
    content = load_checkpoint(fpath)
    known = content if isinstance(content, dict) else {}
    state, epoch, val_result = map(known.get, ("state_dict", "epoch", "val_result"))
    if not (
        isinstance(state, dict)
        and all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items())
        and (_is_number(epoch, int) and epoch >= 0)
        and (val_result is None or _is_number(val_result))
        and all(isinstance(known.get(key), dict | None) for key in ("optimizer", "scheduler", "run"))
    ):
        raise UsageError(f'"{fpath}" is not a checkpoint of a training run: use another one')
    return content


def newest_checkpoint(folder):
    """The path of the checkpoint that the text file ``checkpoint`` in a folder names; None if there is no such file.

    Raises:
        UsageError: the text file does not name a file of this folder, or one that does not exist.
    """
    pointer = os.path.join(folder, "checkpoint")
    if not os.path.isfile(pointer):
        return None
    with open(pointer, "rb") as file:
        name = os.fsdecode(file.readline(LONGEST_NAME).strip())
    if os.path.basename(name) != name or not name.isprintable():
        raise UsageError(f"{pointer} does not name a file of its folder: delete it, or write the name of a checkpoint")
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        raise MissingFileError(f"{pointer} names {path}, which does not exist; restore it or delete {folder}")
    return path


def remove_stale(folder, epochs):
    """Delete from a folder of checkpoints those of some epochs, and what killed processes have not finished.

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
    """Load the newest checkpoint of a folder into a model, and its optimiser and scheduler if given and saved.

    Returns the number of finished epochs, which is the epoch (from 0) to resume from. Raises UsageError if the folder
    has no checkpoint, or it cannot be loaded.
    """
    print(f'Loading checkpoint from "{fdir}"')
    path = newest_checkpoint(fdir)
    if path is None:
        raise MissingFileError(f"no file {os.path.join(fdir, 'checkpoint')} that names a checkpoint: check the folder")
    checkpoint = load_training_state(path)
    restore(checkpoint, path, model, optimizer, scheduler)
    print(f"Previous epoch: {checkpoint['epoch']}")
    return checkpoint["epoch"]


def restore(checkpoint, name, model, optimizer=None, scheduler=None):
    """Load the parts of a training state into a module and, if given and saved, its optimiser and scheduler.

    Raises:
        UsageError: a part does not fit, or a learned tensor is not finite; ``name`` is that of the checkpoint.
    """
    model = model.module if isinstance(model, nn.DataParallel) else model  # save_checkpoint removes its prefix
    check_finite(checkpoint["state_dict"], dict(model.named_parameters()), f"state_dict of the checkpoint {name}")
    for key, target in {"state_dict": model, "optimizer": optimizer, "scheduler": scheduler}.items():
        state = checkpoint.get(key)
        if target is None or state is None:
            continue
        try:
            if isinstance(target, torch.optim.Optimizer):
                state = _matching_optimizer_state(target, state)
            elif target is not model:
                state = matching_state(target.state_dict(), state)
            target.load_state_dict(state)
        except LOAD_ERRORS as error:
            reason = " ".join(str(error).split())
            raise UsageError(
                f"the {key} of the checkpoint {name} does not fit this run ({reason}); use the settings that it was "
                "trained with, or another OUTPUT_DIR"
            ) from error
        print(f"Loaded {key}")


def check_finite(state, names, what):
    """Raise UsageError if one of these tensors of a state dict, a learned one, has a value that is not finite."""
    for name in names:
        if name in state and not torch.isfinite(state[name]).all():
            raise UsageError(f"{name} of the {what} is not finite: use the checkpoint of another epoch, or train again")


def matching_state(own, value, name=""):
    """A part of a checkpoint, checked to have the form of `own`, the same part of what this run would save now.

    Entries of dicts that `own` lacks are left out. Flags (None or a bool in `own`) and private entries may be missing,
    because they differ between versions of torch. The values of `own` are used then.

    Args:
        own: nested dicts and lists of tensors, numbers, flags and strings.
        value: from a checkpoint.
        name (str): of the part, for errors.

    Raises:
        ValueError: the form differs, or a number is not finite, or negative where `own` is not.
    """
    value = vars(value) if isinstance(value, PickledObject) else value
    if isinstance(own, dict) and isinstance(value, dict):
        result = copy.copy(own)
        for key, entry in own.items():
            inner = f"{name}.{key}".strip(".")
            if key in value:
                result[key] = matching_state(entry, value[key], inner)
            elif not (entry is None or isinstance(entry, bool) or str(key).startswith("_")):
                raise ValueError(f"it has no {inner}")
        return result
    if isinstance(own, (list, tuple)) and isinstance(value, (list, tuple)) and len(value) == len(own):
        return type(own)(matching_state(*pair, f"{name}.{i}") for i, pair in enumerate(zip(own, value, strict=True)))
    if isinstance(own, torch.Tensor) and isinstance(value, torch.Tensor):
        fits = value.shape == own.shape and value.dtype == own.dtype and bool(torch.isfinite(value).all())
    elif own is None or isinstance(own, bool):
        fits = isinstance(value, bool | None) or (own is None and _is_number(value))
    elif isinstance(own, numbers.Real):
        fits = _is_number(value) and (value >= 0 or own < 0) and (isinstance(own, float) or value == int(value))
        fits = (fits or value == own) and not (value == 0 and name.rpartition(".")[2] in DIVISORS)
    else:
        fits = type(value) is type(own) is str and value == own
    if not fits:
        raise ValueError(f"{name} has another form or an impossible value")
    return value


def _matching_optimizer_state(optimizer, state):
    """The same for an optimiser, with this run's `KERNELS`: a checkpoint may be of another device.

    It takes a step with zero gradients for that, as torch checks little before one.

    Raises:
        Exception: nearly any, if the state does not fit.
    """
    own = optimizer.state_dict()["param_groups"]
    groups = matching_state(own, state["param_groups"], "param_groups")
    for group, mine in zip(groups, own, strict=True):
        group |= {key: mine[key] for key in KERNELS if key in mine}
    state = {"state": state["state"], "param_groups": groups}
    if not state["state"].keys() <= {index for group in groups for index in group["params"]}:
        raise ValueError("its state is not that of these parameters")
    optimizer.load_state_dict(copy.deepcopy(state))  # a step changes tensors in place
    parameters = [param for group in optimizer.param_groups for param in group["params"] if param.requires_grad]
    before = [parameter.detach().clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(lambda: torch.zeros(()))  # some optimisers need such a closure
    finite = all(parameter.isfinite().all() for parameter in parameters)
    for parameter, value in zip(parameters, before, strict=True):
        parameter.detach().copy_(value)
        parameter.grad = None
    if not finite:
        raise ValueError("a step gives parameters that are not finite")
    return state


def _is_number(value, kind=numbers.Real):
    """Whether it is a finite number of a usual size."""
    return isinstance(value, kind) and not isinstance(value, bool) and abs(value) <= LARGEST


def load_pretrained_weights(model, weight_path):
    """Load the weights of a checkpoint or a state dict that match the model's by name and shape; print the others.

    Raises:
        UsageError: the file cannot be loaded.
    """
    checkpoint = load_checkpoint(weight_path)
    weights = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else checkpoint
    if not isinstance(weights, dict) or not all(isinstance(key, str) for key in weights):
        raise UsageError(f'"{weight_path}" contains a {type(weights).__name__}, not a state dict: give another file')
    weights, own = _strip_module(weights), model.state_dict()
    shapes = {key: value.shape for key, value in own.items()}
    tensors = {key: value for key, value in weights.items() if isinstance(value, torch.Tensor)}
    matched = {key: value for key, value in tensors.items() if value.shape == shapes.get(key)}
    if not matched:
        warnings.warn(f"no weights loaded from {weight_path}: none has a name and shape of the model's", stacklevel=2)
        return
    check_finite(matched, matched, f'file "{weight_path}"')
    model.load_state_dict({**own, **matched})
    print(f"Successfully loaded pretrained weights from {weight_path}")
    if discarded := [key for key in weights if key not in matched]:
        print(f"Layers discarded due to unmatched keys or size: {discarded}")
