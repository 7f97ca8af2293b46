"""Copies of modules."""

from collections import OrderedDict
from copy import deepcopy
from typing import Any

from torch import nn

# What a class defines if its objects are copied in a way of its own
OWN_COPIES = "__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__"


def copied(module: nn.Module, known: dict[int, Any]) -> Any:
    """What `deepcopy(module, known)` returns, in a third of the time.

    Most of what a module holds is empty: dictionaries of hooks. `deepcopy` looks at each of them.

    Args:
        known: by the identity of an object what stands for it in the copy; all copies are added.
    """
    if id(module) in known:
        return known[id(module)]
    kind = type(module)
    if any(getattr(kind, name, None) != getattr(nn.Module, name, None) for name in OWN_COPIES):
        return deepcopy(module, known)
    copy = kind.__new__(kind)
    known[id(module)] = copy
    state: dict[str, Any] = {}
    for name, value in module.__getstate__().items():
        if name == "_modules":
            parts = type(value)()
            for key, part in value.items():
                parts[key] = None if part is None else copied(part, known)
            state[name] = parts
        elif type(value) in (dict, OrderedDict) and not value:
            # One that several modules share stays one
            state[name] = known.setdefault(id(value), type(value)())
        else:
            state[name] = deepcopy(value, known)
    copy.__setstate__(state)
    return copy
