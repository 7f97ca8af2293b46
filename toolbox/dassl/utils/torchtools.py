"""Parameters and layers of a model; re-exports the checkpoint functions, as the published package does."""

import torch.nn as nn

from .checkpoint import load_checkpoint, load_pretrained_weights, resume_from_checkpoint, save_checkpoint
from .errors import UsageError

__all__ = [
    "count_num_param",
    "init_network_weights",
    "load_checkpoint",
    "load_pretrained_weights",
    "open_all_layers",
    "open_specified_layers",
    "resume_from_checkpoint",
    "save_checkpoint",
]


def open_all_layers(model):
    """Put the model in training mode and make all parameters trainable."""
    model.train()
    model.requires_grad_(True)


def open_specified_layers(model, open_layers):
    """Make only the named children trainable; freeze the others and put them in evaluation mode.

    Args:
        model (nn.Module): may be wrapped in ``nn.DataParallel``.
        open_layers (str or list of str): names of children, for example ``"fc"``.

    Raises:
        UsageError: the model has no such attribute.
    """
    if isinstance(model, nn.DataParallel):
        model = model.module
    if isinstance(open_layers, str):
        open_layers = [open_layers]
    children = dict(model.named_children())
    for layer in open_layers:
        if not hasattr(model, layer):
            raise UsageError(f'the model has no layer "{layer}"; its layers are {", ".join(children)}')
    for name, child in children.items():
        is_open = name in open_layers
        child.train(is_open)
        child.requires_grad_(is_open)


def count_num_param(model=None, params=None):
    """Count the numbers in a model, or in a list of parameters or of parameter groups.

    Args:
        model (nn.Module, optional): the model.
        params (iterable, optional): tensors, or dicts with tensors under ``"params"``; used if no model is given.

    Raises:
        ValueError: neither is given.
    """
    if model is not None:
        params = model.parameters()
    if params is None:
        raise ValueError("count_num_param() needs a model or params")
    total = 0
    for param in params:
        if isinstance(param, dict):
            group = param["params"]
            total += group.numel() if hasattr(group, "numel") else count_num_param(params=group)
        else:
            total += param.numel()
    return total


def init_network_weights(model, init_type="normal", gain=0.02):
    """Initialise the convolutional, linear and batch-norm layers of a model in place.

    Args:
        model (nn.Module): the model.
        init_type (str): ``normal``, ``xavier``, ``kaiming`` or ``orthogonal``; for convolutional and linear weights.
        gain (float): standard deviation (normal) or gain (xavier, orthogonal); unused by kaiming.

    Raises:
        UsageError: ``init_type`` is unknown.
    """
    fillers = {
        "normal": lambda w: nn.init.normal_(w, 0.0, gain),
        "xavier": lambda w: nn.init.xavier_normal_(w, gain=gain),
        "kaiming": lambda w: nn.init.kaiming_normal_(w, a=0, mode="fan_in"),
        "orthogonal": lambda w: nn.init.orthogonal_(w, gain=gain),
    }
    if init_type not in fillers:
        raise UsageError(f'unknown init_type "{init_type}": use {", ".join(fillers)}')
    for module in model.modules():
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            fillers[init_type](module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
