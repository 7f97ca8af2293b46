"""Layers between a backbone and a classifier."""

from dassl.utils import Registry, check_availability
from torch import nn

HEAD_REGISTRY = Registry("HEAD")

ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU, "gelu": nn.GELU, "tanh": nn.Tanh}


def build_head(name, verbose=True, **kwargs):
    """Build the registered head `name` with its arguments.

    Raises:
        UsageError: no head with that name is registered.
    """
    check_availability(name, HEAD_REGISTRY.registered_names())
    if verbose:
        print(f"Head: {name}")
    return HEAD_REGISTRY.get(name)(**kwargs)


class MLP(nn.Sequential):
    """Linear layers, each followed by optional batch norm, an activation and optional dropout.

    Args:
        in_features (int): input size.
        hidden_layers (int or sequence of int): output size of each layer.
        activation (str): a key of `ACTIVATIONS`.
        bn (bool): batch norm after each linear layer.
        dropout (float): dropout probability; 0 for none.

    Attributes:
        out_features (int): output size.
    """

    def __init__(self, in_features=2048, hidden_layers=(), activation="relu", bn=True, dropout=0.0):
        check_availability(activation, list(ACTIVATIONS))
        sizes = [hidden_layers] if isinstance(hidden_layers, int) else list(hidden_layers)
        layers = []
        for size in sizes:
            layers.append(nn.Linear(in_features, size))
            if bn:
                layers.append(nn.BatchNorm1d(size))
            layers.append(ACTIVATIONS[activation]())
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
            in_features = size
        super().__init__(*layers)
        self.out_features = in_features


@HEAD_REGISTRY.register()
def mlp(**kwargs):
    """See `MLP`."""
    return MLP(**kwargs)
