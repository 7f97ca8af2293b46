"""Checks of what a checkpoint holds before it is used: its file may come from anybody."""

import copy
import numbers

import torch
from torch import nn

from .errors import UsageError
from .torch_files import PickledObject

LARGEST = 2**53  # number in a state: integers are exact as floats up to here
DIVISORS = ("T_max", "step_size", "scale")  # entries of schedulers and of torch.amp.GradScaler that are not 0
# Of a state that does not fit
LOAD_ERRORS = (RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError)


def check_training_state(content, path):
    """Raise UsageError unless a file's content has the form of :func:`save_checkpoint`'s ``state``."""
    content = content if isinstance(content, dict) else {}
    state, epoch, val_result = map(content.get, ("state_dict", "epoch", "val_result"))
    if not (
        isinstance(state, dict)
        and all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items())
        and (_is_number(epoch, int) and epoch >= 0)
        and (val_result is None or _is_number(val_result))
        and all(isinstance(content.get(key), dict | None) for key in ("optimizer", "scheduler", "run"))
    ):
        raise UsageError(f'"{path}" is not a checkpoint of a training run: use another one')


def load_part(target, state, what):
    """Load a part of a checkpoint into a module, an optimiser or a scheduler, if it fits.

    Args:
        target (nn.Module, Optimizer or LRScheduler): changed in place.
        state (dict): what `target.state_dict()` returned when the checkpoint was saved.
        what (str): names the part in errors.

    Raises:
        UsageError: the part does not fit, or a learned tensor is not finite.
    """
    if isinstance(target, nn.DataParallel):
        target = target.module  # save_checkpoint removes its prefix
    if isinstance(target, nn.Module):
        check_finite(state, dict(target.named_parameters()), what)
    try:
        if isinstance(target, torch.optim.Optimizer):
            state = _matching_optimizer_state(target, state)
        elif not isinstance(target, nn.Module):
            state = matching_state(target.state_dict(), state)
        target.load_state_dict(state)
    except LOAD_ERRORS as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"the {what} does not fit this run ({reason}); use the settings that it was trained with, "
            "or another OUTPUT_DIR"
        ) from error


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
            if key in value:
                result[key] = matching_state(entry, value[key], f"{name}.{key}".strip("."))
            elif not (entry is None or isinstance(entry, bool) or str(key).startswith("_")):
                raise ValueError(f"it has no {name}.{key}".replace(" .", " "))
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
    """The same for an optimiser. It takes a step with zero gradients for that, as torch checks little before one.

    Raises:
        Exception: nearly any, if the state does not fit.
    """
    groups = matching_state(optimizer.state_dict()["param_groups"], state["param_groups"], "param_groups")
    state = {"state": state["state"], "param_groups": groups}
    if not state["state"].keys() <= {index for group in groups for index in group["params"]}:
        raise ValueError("its state is not that of these parameters")
    optimizer.load_state_dict(copy.deepcopy(state))  # a step changes tensors in place
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
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
