"""Checkpoints: written atomically with a checksum, and read without executing code that a file names."""

import io
import os
import warnings
from collections import OrderedDict
from pathlib import Path

import torch

from .errors import MissingFileError, UsageError
from .files import write_atomically
from .logger import print_detail
from .state_checks import check_finite, check_training_state, load_part
from .tools import mkdir_if_missing
from .torch_files import DamagedError, read_torch_file, sealed

LONGEST_NAME = 255  # bytes


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
        write_atomically(folder / name, [content])
        print_detail(f"Checkpoint saved to {folder / name}")
    write_atomically(folder / "checkpoint", [f"{names[0]}\n".encode()])
    try:
        read_torch_file(folder / names[0])
    except DamagedError as error:
        warnings.warn(f"load_checkpoint will refuse the checkpoint ({error})", stacklevel=2)


def load_checkpoint(fpath):
    """Read a checkpoint, ours or of the published Dassl, to the CPU without executing code that it names.

    Args:
        fpath (str): the file.

    Returns:
        dict: the state that :func:`save_checkpoint` was given. Pickled schedulers and optimisers become objects that
        have their attributes and no behaviour.

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
    """:func:`load_checkpoint` for a checkpoint of a training run; raises UsageError for a bare state dict."""
    checkpoint = load_checkpoint(fpath)
    check_training_state(checkpoint, fpath)
    return checkpoint


def newest_checkpoint(folder):
    """The path of the checkpoint that the text file ``checkpoint`` in a folder names; None if there is no such file.

    Raises:
        UsageError: the text file does not name a file of this folder.
        MissingFileError: the text file names a checkpoint that does not exist.
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


def resume_from_checkpoint(fdir, model, optimizer=None, scheduler=None):
    """Load the newest checkpoint of a folder into a model, and its optimiser and scheduler if given and saved.

    Args:
        fdir (str): a folder with a text file ``checkpoint``.
        model (nn.Module): changed in place.
        optimizer (Optimizer, optional): changed in place.
        scheduler (LRScheduler, optional): changed in place.

    Returns:
        int: the number of finished epochs, which is the epoch (from 0) to resume from.

    Raises:
        UsageError: the folder has no checkpoint, or it cannot be loaded.
    """
    print(f'Loading checkpoint from "{fdir}"')
    path = newest_checkpoint(fdir)
    if path is None:
        raise MissingFileError(f"no file {os.path.join(fdir, 'checkpoint')} that names a checkpoint: check the folder")
    checkpoint = load_training_state(path)
    restore(checkpoint, path, state_dict=model, optimizer=optimizer, scheduler=scheduler)
    print(f"Previous epoch: {checkpoint['epoch']}")
    return checkpoint["epoch"]


def restore(checkpoint, name, **targets):
    """Load the parts of a training state into a module, its optimiser and its scheduler.

    Args:
        checkpoint (dict): the state.
        name (str): of the checkpoint, for errors.
        targets: key of the part -> what it is loaded into; None, or a part that was not saved, is skipped.

    Raises:
        UsageError: a part does not fit, or a learned tensor is not finite.
    """
    for key, target in targets.items():
        if target is not None and checkpoint.get(key) is not None:
            load_part(target, checkpoint[key], f"{key} of the checkpoint {name}")
            print(f"Loaded {key}")


def load_pretrained_weights(model, weight_path):
    """Load the weights that match the model's by name and shape, and print the others.

    Args:
        model (nn.Module): changed in place.
        weight_path (str): a checkpoint or a saved state dict.

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
