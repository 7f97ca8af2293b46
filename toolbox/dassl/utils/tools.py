"""Registries, running averages, files, seeds and the environment."""

import functools
import json
import os
import random
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import PIL

from common.errors import UnknownNameError, UsageError, suggestion
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
    """Seed the generators of random, numpy and torch (all devices)."""
    import torch  # takes a second, and not every command needs it

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # of all devices


@functools.cache  # it runs pip and lscpu, which takes seconds
def collect_env_info():
    """Describe the machine and its software, as ``python -m torch.utils.collect_env`` does, and
    Pillow.
    """
    from torch.utils.collect_env import get_pretty_env_info  # noqa: PLC0415, RUF100

    return f"{get_pretty_env_info()}\n        Pillow ({PIL.__version__})"


def listdir_nohidden(path, sort=False):
    """Names of the files and folders in a folder, except those that begin with a dot."""
    items = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(items) if sort else items


def check_availability(requested, available):
    """Raise UsageError unless a name is among the available ones, which the message lists."""
    if requested not in available:
        known = ", ".join(sorted(map(str, available))) or "none"
        raise UsageError(
            f'"{requested}" is not available (there are: {known}){suggestion(requested, available)}'
        )


def tolist_if_not(x):
    """Return ``x`` if it is a list, else ``[x]``."""
    return x if isinstance(x, list) else [x]


def count_num_param(model=None, params=None):
    """Count the numbers in a model, or in ``params``: tensors, or dicts with tensors under
    ``"params"``.
    """
    params = params if model is None else model.parameters()
    if params is None:
        raise ValueError("count_num_param() needs a model or params")
    total = 0
    for param in params:
        part = param["params"] if isinstance(param, dict) else param
        total += part.numel() if hasattr(part, "numel") else count_num_param(params=part)
    return total


class Registry:
    """Maps names to classes or functions, so that a config can select one by name; errors name
    their kind ``name``.
    """

    def __init__(self, name):
        self._name = name
        self._obj_map = {}

    def register(self, obj=None, force=False):
        """Register ``obj``, a class or function, under its ``__name__``; without ``obj``, return a
        decorator. Raises KeyError if the name is taken and ``force`` is False."""
        if obj is None:
            return functools.partial(self.register, force=force)
        if obj.__name__ in self._obj_map and not force:
            raise KeyError(f'"{obj.__name__}" is already registered in the {self._name} registry')
        self._obj_map[obj.__name__] = obj
        return obj

    def get(self, name):
        """The object registered under ``name``; UnknownNameError (a UsageError and a KeyError) if
        there is none.
        """
        if name not in self._obj_map:
            raise UnknownNameError(
                f'the {self._name} registry has no "{name}"{suggestion(name, self._obj_map)}'
            )
        return self._obj_map[name]

    def registered_names(self):
        """All names, in the order of registration."""
        return list(self._obj_map)


class AverageMeter:
    """The latest value ``val`` of a series, its ``avg``, ``sum`` and ``count``.

    With ``ema`` the average has exponential decay (0.9) instead of being over all values.
    """

    val = avg = sum = count = 0

    def __init__(self, ema=False):
        self.ema = ema

    def reset(self):
        self.val = self.avg = self.sum = self.count = 0

    def update(self, val, n=1):
        """Add ``val`` (a number or a one-element tensor), the mean of ``n`` samples."""
        self.val = val = val.item() if hasattr(val, "item") else val
        self.sum += val * n
        self.count += n
        self.avg = self.avg * 0.9 + val * 0.1 if self.ema else self.sum / self.count


class MetricMeter:
    """Named averages, printed as ``loss 1.2000 (1.5000) acc 50.0000 (43.7500)``: latest value, then
    average.
    """

    def __init__(self, delimiter=" "):
        self.meters = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, input_dict):
        """Add a dict of numbers or one-element tensors; None is ignored."""
        for name, value in (input_dict or {}).items():
            self.meters[name].update(value)

    def __str__(self):
        return self.delimiter.join(
            f"{name} {m.val:.4f} ({m.avg:.4f})" for name, m in self.meters.items()
        )
