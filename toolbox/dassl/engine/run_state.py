"""The state of a run besides its weights. With it, a resumed run is bit-identical to an uninterrupted one.

It consists of plain values and tensors, so that a checkpoint loads without executing code that it names.
"""

import os
import random
import re

import numpy as np
import torch
from dassl.utils import UsageError, load_checkpoint
from dassl.utils.checkpoint import newest_checkpoint


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
    """Restore what `rng_state` returned; states of CUDA devices that this machine lacks are ignored."""
    version, words, gauss_next = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss_next))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    for device, cuda_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda_state.cpu(), device)


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
    newest = {name: load_checkpoint(path) for name, path in paths.items()}
    epochs = {name: checkpoint["epoch"] for name, checkpoint in newest.items()}
    if len(set(epochs.values())) == 1:
        return newest

    available = {name: {epochs[name]: paths[name], **_epoch_files(os.path.dirname(paths[name]))} for name in names}
    common = set.intersection(*(set(files) for files in available.values()))
    common = [epoch for epoch in common if epoch <= max(epochs.values())]
    if not common:
        found = ", ".join(f"{name} {sorted(files)}" for name, files in available.items())
        raise UsageError(
            f"the models in {directory} have no epoch in common ({found}); delete their folders to train from scratch"
        )
    epoch = max(common)
    print(f"The last save was interrupted: the newest epoch that all models have is {epoch}")
    return {name: load_checkpoint(available[name][epoch]) for name in names}


def remove_epochs(directory, names, epochs):
    """Delete the checkpoints of these epochs (counted from 1) of all models, where they exist."""
    for name in names:
        for epoch in epochs:
            path = os.path.join(directory, name, f"model.pth.tar-{epoch}")
            if os.path.exists(path):
                os.remove(path)


def _epoch_files(folder):
    """`{epoch: path}` of the files `model.pth.tar-<epoch>` in a folder."""
    matches = (re.fullmatch(r"model\.pth\.tar-(\d+)", name) for name in os.listdir(folder))
    return {int(match[1]): os.path.join(folder, match[0]) for match in matches if match}
