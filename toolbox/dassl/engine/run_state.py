"""The state of a run except its weights. With it, a run that resumes on a CPU is bit-identical to
an uninterrupted one.

It consists of plain values and tensors, so that a checkpoint loads without executing code that it
names.
"""

import random

import numpy as np
import torch


def rng_state():
    """The state of the random generators of Python, numpy, torch and all CUDA devices."""
    version, words, gauss_next = random.getstate()
    name, keys, position, has_gauss, cached_gaussian = np.random.get_state()
    facts = str(name), torch.tensor(keys.tolist()), int(position)
    return {
        "python": (version, torch.tensor(words), gauss_next),
        "numpy": (*facts, int(has_gauss), float(cached_gaussian)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state):
    """Restore what `rng_state` returned, except for CUDA devices that are not here; else one of
    LOAD_ERRORS.
    """
    version, words, gauss_next = state["python"]
    # All five: numpy reads beyond the end of fewer
    name, keys, position, has_gauss, gauss = state["numpy"]
    if not isinstance(gauss_next, float | None) or not 0 <= position <= len(keys):
        raise ValueError("a random state has an impossible value")
    random.setstate((version, tuple(words.tolist()), gauss_next))
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    for device, cuda_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda_state, device)
