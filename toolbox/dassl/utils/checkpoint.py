"""Checkpoints: written whole or not at all, and read without running anything a file names."""

import contextlib
import io
import os
import re
import warnings
from _compat_pickle import IMPORT_MAPPING
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn

from .errors import MissingFileError, UsageError
from .tools import mkdir_if_missing

__all__ = ["load_checkpoint", "load_pretrained_weights", "resume_from_checkpoint", "save_checkpoint"]


class PickledObject:
    """Stands in for a pickled optimiser or scheduler: holds the attributes it was saved with, and can do nothing."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        """Arguments found in the pickle are dropped."""

    def __setstate__(self, state):
        if isinstance(state, dict):
            self.__dict__.update(state)


def _plain_dict(factory=None):
    """Stands in for ``defaultdict``, which torch's safe unpickler cannot fill."""
    return {}


def _safe_globals():
    """What a checkpoint may name besides tensors.

    Checkpoints of the published Dassl hold whole scheduler objects, and through them the optimiser. Each such class
    is read as a :class:`PickledObject`.
    """
    classes = [
        cls
        for module in (torch.optim, torch.optim.lr_scheduler)
        for cls in vars(module).values()
        if isinstance(cls, type) and issubclass(cls, (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler))
    ]
    names = {f"{cls.__module__}.{cls.__qualname__}" for cls in classes}
    names.update(
        f"dassl.optim.lr_scheduler.{name}"
        for name in ("_BaseWarmupScheduler", "ConstantWarmupScheduler", "LinearWarmupScheduler")
    )
    names.update(f"dassl.optim.radam.{name}" for name in ("RAdam", "PlainRAdam", "AdamW"))
    inert = ((PickledObject, name) for name in sorted(names))
    return [OrderedDict, dict, list, int, (_plain_dict, "collections.defaultdict"), *inert]


def _sync_folder(folder):
    """Put a folder's list of files on disk, where the file system can; the files themselves are there already."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_whole(path, content):
    """Write ``content`` (bytes) so that ``path`` holds either all of it or what it held before.

    Raises:
        OSError: naming ``path``; nothing has changed and no temporary file is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, f"cannot write: {error.strerror}; what was there is unchanged", str(path)) from error
    except BaseException:  # interrupted: leave no litter
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _without_numpy(value):
    """A copy of nested dicts, lists and tuples with numpy scalars as Python's and arrays as tensors."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if type(value) in (dict, OrderedDict):
        return type(value)((key, _without_numpy(item)) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value)(_without_numpy(item) for item in value)
    return value


def _strip_module(state_dict):
    """``state_dict`` without the ``module.`` that ``nn.DataParallel`` puts before every name."""
    return OrderedDict((key.removeprefix("module."), value) for key, value in state_dict.items())


def save_checkpoint(state, save_dir, is_best=False, remove_module_from_keys=True, model_name=""):
    """Save a training state as ``<save_dir>/model.pth.tar-<epoch>`` and name it in ``<save_dir>/checkpoint``.

    Args:
        state (dict): ``state_dict``, ``epoch``, and usually ``optimizer``, ``scheduler``, ``val_result``. Tensors and
            plain values only: anything else is saved, with a warning that load_checkpoint will refuse it.
        save_dir (str): the folder, created if needed.
        is_best (bool): also write ``model-best.pth.tar``.
        remove_module_from_keys (bool): take ``module.`` (of ``nn.DataParallel``) off the keys of ``state_dict``.
        model_name (str): a file name in place of ``model.pth.tar-<epoch>``.

    Raises:
        OSError: names the file that could not be written (disk full, no permission). Files from before are unchanged.
    """
    state = _without_numpy(state)
    if remove_module_from_keys:
        state = {**state, "state_dict": _strip_module(state["state_dict"])}
    # In memory first: what cannot be pickled must not cost the previous checkpoint.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    with torch.serialization.safe_globals(_safe_globals()):
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(buffer)
    if unsafe:
        warnings.warn(
            f"the checkpoint holds objects that load_checkpoint will refuse ({', '.join(sorted(unsafe))}): "
            "save tensors, numbers, strings, lists and dicts",
            stacklevel=2,
        )

    content = buffer.getbuffer()
    mkdir_if_missing(save_dir)
    folder = Path(save_dir)
    fpath = folder / (model_name or f"model.pth.tar-{state['epoch']}")
    _write_whole(fpath, content)
    print(f"Checkpoint saved to {fpath}")
    if is_best:
        best = folder / "model-best.pth.tar"
        _write_whole(best, content)
        print(f'Best checkpoint saved to "{best}"')
    _write_whole(folder / "checkpoint", f"{fpath.name}\n".encode())


def load_checkpoint(fpath):
    """Read a checkpoint, on the CPU, without running anything it names.

    Checkpoints of the published Dassl load too; schedulers and optimisers pickled in them come back as inert
    objects that only hold their attributes.

    Args:
        fpath (str): the file.

    Returns:
        dict: what :func:`save_checkpoint` was given.

    Raises:
        UsageError: no such file, not a checkpoint, truncated, or it names something other than tensors and plain
            values; in the last case the message says what.
    """
    if fpath is None:
        raise UsageError("no checkpoint file given: pass its path")
    if not os.path.exists(fpath):
        raise MissingFileError(f'there is no checkpoint at "{fpath}": check the folder and the epoch')
    try:
        with torch.serialization.safe_globals(_safe_globals()):
            return torch.load(fpath, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a corrupt file can make the unpickler raise nearly anything
        named = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", str(error))
        if named:
            module, dot, name = named[1].rpartition(".")
            module = IMPORT_MAPPING.get(module, module)  # pickles use Python 2's module names
            raise UsageError(
                f'"{fpath}" names {module}{dot}{name}, which is neither a tensor nor a plain value, so it is not '
                "loaded: use a checkpoint from a source you trust, saved with tensors and plain values only"
            ) from error
        raise UsageError(
            f'"{fpath}" is not a whole checkpoint ({type(error).__name__}): it was cut short or is another '
            "kind of file; use another epoch's or train again"
        ) from error


def resume_from_checkpoint(fdir, model, optimizer=None, scheduler=None):
    """Load the newest checkpoint of a folder into a model, and its optimiser and scheduler if given and saved.

    Args:
        fdir (str): a folder with a text file ``checkpoint``.
        model (nn.Module): changed in place.
        optimizer (Optimizer, optional): changed in place.
        scheduler (LRScheduler, optional): changed in place.

    Returns:
        int: the epoch to go on from (how many are done).

    Raises:
        UsageError: the folder has no checkpoint, or it cannot be loaded.
    """
    print(f'Loading checkpoint from "{fdir}"')
    pointer = Path(fdir) / "checkpoint"
    if not pointer.is_file():
        raise MissingFileError(f'there is no file "{pointer}" that names a checkpoint to resume from: check the folder')
    name = (pointer.read_text(encoding="utf-8").splitlines() or [""])[0].strip()
    if not name or not (Path(fdir) / name).is_file():
        raise MissingFileError(
            f'"{pointer}" names "{name}", which is not there: '
            "write the name of one that is into it, or remove the folder"
        )
    checkpoint = load_checkpoint(Path(fdir) / name)
    if isinstance(model, nn.DataParallel):
        model = model.module
    model.load_state_dict(checkpoint["state_dict"])
    print("Loaded model weights")
    for target, key in ((optimizer, "optimizer"), (scheduler, "scheduler")):
        if target is not None and checkpoint.get(key) is not None:
            target.load_state_dict(checkpoint[key])
            print(f"Loaded {key}")
    start_epoch = checkpoint["epoch"]
    print(f"Previous epoch: {start_epoch}")
    return start_epoch


def load_pretrained_weights(model, weight_path):
    """Load the weights that the model has under the same name and in the same shape; say which are left over.

    Args:
        model (nn.Module): changed in place.
        weight_path (str): a checkpoint, or a file that holds a state dict.

    Raises:
        UsageError: the file cannot be loaded.
    """
    checkpoint = load_checkpoint(weight_path)
    if not isinstance(checkpoint, dict):
        raise UsageError(f'"{weight_path}" holds a {type(checkpoint).__name__}, not a state dict')
    weights = _strip_module(checkpoint.get("state_dict", checkpoint))
    own = model.state_dict()
    matched = {
        key: weight
        for key, weight in weights.items()
        if key in own and isinstance(weight, torch.Tensor) and own[key].shape == weight.shape
    }
    discarded = [key for key in weights if key not in matched]
    model.load_state_dict({**own, **matched})
    if not matched:
        warnings.warn(f"no weights loaded from {weight_path}: none has a name and shape of the model's", stacklevel=2)
        return
    print(f"Successfully loaded pretrained weights from {weight_path}")
    if discarded:
        print(f"Layers discarded due to unmatched keys or size: {discarded}")
