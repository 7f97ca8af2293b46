"""The state of a run besides its weights. With it, a resumed run is bit-identical to an uninterrupted one.

It consists of plain values and tensors, so that a checkpoint loads without executing code that it names.
"""

import contextlib
import os
import random
import re

import numpy as np
import torch
from dassl.utils import UsageError
from dassl.utils.checkpoint import load_training_state, newest_checkpoint
from dassl.utils.state_checks import MISFITS, fitted


def rng_state():
    """The state of the random generators of Python, numpy, torch and all CUDA devices."""
    version, words, gauss_next = random.getstate()
    name, keys, position, has_gauss, cached_gaussian = np.random.get_state()
    return {
        "python": (version, torch.tensor(words), gauss_next),
        "numpy": (str(name), torch.tensor(keys.tolist()), int(position), int(has_gauss), float(cached_gaussian)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state):
    """Restore what `rng_state` returned; states of CUDA devices that this machine lacks are ignored.

    Raises:
        UsageError: it is not the state of these generators.
    """
    own = rng_state()
    # None accepts what is not always there: the second one of a pair of Gaussian numbers, states of other devices.
    own |= {"python": (*own["python"][:2], None), "numpy": (*own["numpy"][:4], None), "cuda": None}
    try:
        cuda = state["cuda"][: torch.cuda.device_count()]
        state = fitted(own, {**state, "cuda": None}, "rng")
        version, words, gauss_next = state["python"]
        random.setstate((version, tuple(words.tolist()), gauss_next))
        name, keys, position, *rest = state["numpy"]
        if position > len(keys):
            raise ValueError("rng.numpy.2 is not a position")
        np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, *rest))
        torch.set_rng_state(state["torch"].cpu())
        for device, cuda_state in enumerate(cuda):
            torch.cuda.set_rng_state(cuda_state.cpu(), device)
    except MISFITS as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"the random states of the checkpoint are damaged ({reason}); use another epoch's") from error


def fitted_run_state(own, state, epoch):
    """The run state of a checkpoint, checked; entries that the toolbox does not know stay as they are.

    Args:
        own (dict): what this run would save now.
        state (dict): from the checkpoint.
        epoch (int): of the checkpoint, from 1.

    Raises:
        UsageError: an entry is missing, or has another form or an impossible value.
    """
    own, state = dict(own), dict(state)
    if isinstance(state.get("train_seconds"), float) and state["train_seconds"] < 0:
        state["train_seconds"] = 0.0  # earlier versions measured with the wall clock, which can be set back
    try:
        rng, transient = dict(state["rng"]), list(state["transient_epochs"])
        if not all(type(number) is int and 1 <= number <= epoch for number in transient):
            raise ValueError("transient_epochs is not a list of epochs")
        own |= {"transient_epochs": None, "rng": None}
        # A disabled scaler (no CUDA) saves an empty state, which an enabled one refuses to load.
        if not (own.get("scaler") and state.get("scaler")):
            own.pop("scaler", None)
            state.pop("scaler", None)
        checked = fitted(own, {**state, "transient_epochs": None, "rng": None})
    except MISFITS as error:
        raise UsageError(f"the run state of the checkpoint is damaged ({error}); use another epoch's") from error
    return {**state, **checked, "transient_epochs": transient, "rng": rng}


def load_newest(directory, names):
    """Load the newest epoch for which all models of a run have checkpoints.

    If a run was killed between saving one model and the next, the newest checkpoints of its models are of different
    epochs.

    Args:
        directory (str): the run's output directory, with one folder for every model.
        names (list of str): names of the models.

    Returns:
        `{name: checkpoint dict}`, all of one epoch; None if a model has no checkpoint.

    Raises:
        UsageError: a checkpoint is missing or damaged, or the models have no epoch in common.
    """
    paths = {name: newest_checkpoint(os.path.join(directory, name)) for name in names}
    if not names or None in paths.values():
        return None
    newest = {name: load_training_state(path) for name, path in paths.items()}
    epochs = {name: checkpoint["epoch"] for name, checkpoint in newest.items()}
    if len(set(epochs.values())) == 1:
        return newest

    available = {name: {epochs[name]: paths[name], **epoch_files(os.path.dirname(paths[name]))} for name in names}
    common = set.intersection(*(set(files) for files in available.values()))
    common = [epoch for epoch in common if epoch <= max(epochs.values())]
    if not common:
        found = ", ".join(f"{name} {sorted(files)}" for name, files in available.items())
        raise UsageError(
            f"the models in {directory} have no epoch in common ({found}); delete their folders to train from scratch"
        )
    epoch = max(common)
    print(f"The last save was interrupted: the newest epoch that all models have is {epoch}")
    return {name: load_training_state(available[name][epoch]) for name in names}


def remove_epochs(directory, names, epochs):
    """Delete the checkpoints of these epochs (counted from 1) of all models, where they exist."""
    for folder in (os.path.join(directory, name) for name in names):
        if not os.path.islink(folder):  # it may lead to another run
            for epoch in epochs:
                with contextlib.suppress(FileNotFoundError):
                    os.remove(os.path.join(folder, f"model.pth.tar-{epoch}"))


def is_save_interrupted(directory, names):
    """Whether a run was killed between saving an epoch as the best one and as the newest one."""
    newest = (newest_checkpoint(os.path.join(directory, name)) for name in names)
    return any(path is not None and os.path.basename(path) == "model-best.pth.tar" for path in newest)


def epoch_files(folder):
    """`{epoch: path}` of the files `model.pth.tar-<epoch>` in a folder; empty if there is no such folder."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    matches = (re.fullmatch(r"model\.pth\.tar-(\d+)", name) for name in names)
    return {int(match[1]): os.path.join(folder, match[0]) for match in matches if match}
