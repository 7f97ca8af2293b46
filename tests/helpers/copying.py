"""Copies of kept backbones in a fifth of the time of `copy.deepcopy`, which takes apart a dozen empty
dictionaries of each module: of modules without state of their own.
"""

from copy import deepcopy
from typing import Any

from torch import nn

HOOKS = ("__deepcopy__", "__reduce_ex__", "__getstate__")
PLAIN = {hook: getattr(nn.Module, hook, None) for hook in HOOKS}


def copy_of(module: nn.Module, memo: dict[int, Any] | None = None) -> Any:
    """What `deepcopy(module, memo)` returns: `memo` has the copies of objects by their ids."""
    memo = {} if memo is None else memo
    if id(module) in memo:
        return memo[id(module)]
    kind = type(module)
    if any(getattr(kind, hook, None) is not PLAIN[hook] for hook in HOOKS):
        return deepcopy(module, memo)
    copied = kind.__new__(kind)
    memo[id(module)] = copied
    state: dict[str, Any] = {}
    for name, value in vars(module).items():
        if name == "_modules":
            state[name] = {
                key: None if part is None else copy_of(part, memo) for key, part in value.items()
            }
        elif isinstance(value, dict | set) and not value:
            state[name] = type(value)()
        else:
            state[name] = deepcopy(value, memo)
    copied.__setstate__(state)
    return copied
