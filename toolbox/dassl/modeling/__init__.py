"""Backbones and heads for projects that build their own networks; no trainer here uses them.

Names and weights of backbones are torchvision's, as in the published Dassl.
"""

from dassl.utils import UsageError, check_availability
from torch import nn
from torchvision import models

__all__ = ["build_backbone", "build_head"]

ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}


def build_backbone(name, verbose=True, pretrained=True):
    """A torchvision classifier without its last linear layer: images (N, 3, H, W) to features (N,
    `out_features`).

    With `pretrained` it has torchvision's weights. `verbose` is unused; published callers pass it.
    UsageError if the backbone is unknown, or does not end in a linear layer.
    """
    check_availability(name, models.list_models(module=models))
    model = models.get_model(name, weights="DEFAULT" if pretrained else None)
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UsageError(f"{name} does not end in a linear layer; choose another backbone")
    model.out_features = model.get_submodule(linear[-1]).in_features
    parent, _, child = linear[-1].rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())
    return model


def build_head(
    name, verbose=True, in_features=2048, hidden_layers=(), activation="relu", bn=True, dropout=0.0
):
    """Linear layers, each followed by batch norm if `bn`, an activation, and dropout of that
    probability if above 0.

    Args:
        name (str): "mlp"; UsageError for another one, or an unknown `activation`.
        verbose (bool): unused; published callers pass it.
        in_features (int): input size; the module's `out_features` is its output size.
        hidden_layers (int or sequence of int): output size of each layer.
    """
    check_availability(name, ["mlp"])
    check_availability(activation, ACTIVATIONS)
    layers = []
    for size in [hidden_layers] if isinstance(hidden_layers, int) else hidden_layers:
        layers += [
            nn.Linear(in_features, size),
            *([nn.BatchNorm1d(size)] if bn else []),
            ACTIVATIONS[activation](),
        ]
        layers += [nn.Dropout(dropout)] if dropout > 0 else []
        in_features = size
    head = nn.Sequential(*layers)
    head.out_features = in_features
    return head
