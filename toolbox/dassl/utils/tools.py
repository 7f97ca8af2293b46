"""Files, seeds and the environment."""

import functools
import json
import os
import random
import warnings
from pathlib import Path

import numpy as np
import PIL

from common.errors import UsageError, suggestion
from common.files import write_text

from .images import read_image  # noqa: F401 - its published place


def mkdir_if_missing(dirname):
    """Create the folder and its parents if they are missing."""
    Path(dirname).mkdir(parents=True, exist_ok=True)


def check_isfile(fpath):
    """Return whether ``fpath`` is a file; warn if it is not."""
    if not os.path.isfile(fpath):
        warnings.warn(f'No file found at "{fpath}"', stacklevel=2)
    return os.path.isfile(fpath)


def read_json(fpath):
    """The content of a JSON file."""
    with open(fpath, encoding="utf-8") as f:
        return json.load(f)


def write_json(obj, fpath):
    """Write ``obj`` as indented JSON; create the folder if it is missing."""
    mkdir_if_missing(Path(fpath).parent)
    write_text(Path(fpath), json.dumps(obj, indent=4, separators=(",", ": ")))


def set_random_seed(seed):
    """Seed the generators of random, numpy, torch and torch.cuda (all devices)."""
    import torch  # takes a second, and not every command needs it

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)


@functools.cache  # it runs pip and lscpu, which takes seconds
def collect_env_info():
    """Describe the machine and its software, as ``python -m torch.utils.collect_env`` does, and Pillow."""
    from torch.utils.collect_env import get_pretty_env_info  # noqa: PLC0415 - slow, and rarely needed

    return f"{get_pretty_env_info()}\n        Pillow ({PIL.__version__})"


def listdir_nohidden(path, sort=False):
    """Names of the files and folders in a folder, except those that begin with a dot."""
    items = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(items) if sort else items


def check_availability(requested, available):
    """Raise UsageError unless a name is among the available ones, which the message lists."""
    if requested not in available:
        known = ", ".join(sorted(map(str, available))) or "none"
        raise UsageError(f'"{requested}" is not available (there are: {known}){suggestion(requested, available)}')


def tolist_if_not(x):
    """Return ``x`` if it is a list, else ``[x]``."""
    return x if isinstance(x, list) else [x]


def count_num_param(model=None, params=None):
    """Count the numbers in a model, or in ``params``: tensors, or dicts with tensors under ``"params"``."""
    params = params if model is None else model.parameters()
    if params is None:
        raise ValueError("count_num_param() needs a model or params")
    total = 0
    for param in params:
        part = param["params"] if isinstance(param, dict) else param
        total += part.numel() if hasattr(part, "numel") else count_num_param(params=part)
    return total
