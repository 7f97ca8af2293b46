"""Checks of what a checkpoint holds before it is used: its file may come from anybody."""

import copy
import numbers

import torch
from torch import nn

from .errors import UsageError
from .pickles import PickledObject

LARGEST = 2**53  # number in a state: integers are exact as floats up to here
DIVISORS = ("T_max", "step_size", "scale")  # entries of schedulers and of torch.amp.GradScaler that are not 0
MISFITS = (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError, AssertionError)


def check_training_state(content, path):
    """Check that a file's content has the form of :func:`save_checkpoint`'s ``state``.

    Raises:
        UsageError: it has not; the message names the first part.
    """
    state = content.get("state_dict") if isinstance(content, dict) else None
    wrong = None
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    ):
        wrong = "state_dict is not a dict of tensors"
    elif not _is_number(content.get("epoch"), int) or content["epoch"] < 0:
        wrong = "epoch is not a number of epochs"
    elif content.get("val_result") is not None and not _is_number(content["val_result"]):
        wrong = "val_result is not a number"
    else:
        for key in ("optimizer", "scheduler", "run"):
            if not isinstance(content.get(key), dict | None):
                wrong = f"{key} is not a dict"
    if wrong:
        raise UsageError(f'"{path}" is not a checkpoint of a training run ({wrong}): use another one')


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
    try:
        if isinstance(target, nn.Module):
            check_finite(state, dict(target.named_parameters()), what)
        elif isinstance(target, torch.optim.Optimizer):
            state = _fitted_optimizer(target, state)
        else:
            state = fitted(target.state_dict(), state)
        target.load_state_dict(state)
    except UsageError:
        raise
    except MISFITS as error:
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


def fitted(own, value, name=""):
    """A part of a checkpoint in the form of `own`, the same part of what this run would save now.

    Entries of dicts that `own` lacks are left out. Flags (None or a bool in `own`) and private entries may be missing,
    and are then `own`'s: versions of torch differ in these.

    Args:
        own: nested dicts and lists of tensors, numbers, flags and strings.
        value: from a checkpoint.
        name (str): of the part, for errors.

    Raises:
        ValueError: the form differs, or a number is not finite, or negative where `own` is not.
    """
    if isinstance(own, dict):
        return _fitted_dict(own, vars(value) if isinstance(value, PickledObject) else value, name)
    if isinstance(own, (list, tuple)):
        if not isinstance(value, (list, tuple)) or len(value) != len(own):
            raise ValueError(f"{name} is not a list of {len(own)}")
        return type(own)(fitted(*pair, f"{name}.{index}") for index, pair in enumerate(zip(own, value, strict=True)))
    if isinstance(own, torch.Tensor):
        fits = isinstance(value, torch.Tensor) and value.shape == own.shape
        fits = fits and (value.dtype == own.dtype or value.is_floating_point() and own.is_floating_point())
        fits = fits and bool(torch.isfinite(value).all())
        fits = fits or (own.dim() == 0 and _is_number(value))  # a count of steps, of an older torch
        fits = fits and not (own.dim() == 0 and value < 0)
    elif own is None or isinstance(own, bool):
        fits = isinstance(value, bool | None) or (own is None and _is_number(value))
    elif isinstance(own, str):
        fits = value == own
    else:
        fits = _is_number(value) and (value >= 0 or own < 0)
        fits = (fits and (isinstance(own, float) or value == int(value))) or value == own
        fits = fits and not (value == 0 and name.rpartition(".")[2] in DIVISORS)
    if not fits:
        raise ValueError(f"{name} has another form or an impossible value")
    return value


def _fitted_dict(own, value, name):
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not a dict")
    result = copy.copy(own)
    for key, entry in own.items():
        if key in value:
            result[key] = fitted(entry, value[key], f"{name}.{key}".strip("."))
        elif not (entry is None or isinstance(entry, bool) or str(key).startswith("_")):
            raise ValueError(f"it has no {name}.{key}".replace(" .", " "))
    return result


def _fitted_optimizer(optimizer, value):
    """The same for the state of an optimiser, which has entries only for parameters that had gradients.

    The flags say how steps are computed: they stay as they are. Optimisers whose steps need more than gradients, such
    as LBFGS, are left to torch's checks.
    """
    try:
        form = _after_a_step(copy.deepcopy(optimizer)).state_dict()
    except Exception:  # the step of an unknown class may need anything
        return value
    state = value.get("state")
    if not isinstance(state, dict) or not state.keys() <= form["state"].keys():
        raise ValueError("its state is not that of these parameters")
    groups = fitted(form["param_groups"], value.get("param_groups"), "param_groups")
    for own, group in zip(form["param_groups"], groups, strict=True):
        group["params"] = own["params"]
        group.update((key, flag) for key, flag in own.items() if flag is None or isinstance(flag, bool))
    state = {index: fitted(form["state"][index], entry, f"state.{index}") for index, entry in state.items()}
    trial = copy.deepcopy(optimizer)
    result = {"param_groups": groups, "state": state}
    trial.load_state_dict(copy.deepcopy(result))  # a step changes tensors in place
    _after_a_step(trial)  # shows settings that are not possible together
    return result


def _after_a_step(optimizer):
    """The optimiser after a step with zero gradients, so that it has all entries."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return optimizer


def _is_number(value, kind=numbers.Real):
    """Whether it is a finite number of a usual size."""
    return isinstance(value, kind) and not isinstance(value, bool) and abs(value) <= LARGEST
