"""Image backbones: registered ones, and torchvision's classifiers by name.

The names and weights are torchvision's, as in the published Dassl. timm has others, so
``timm.create_model(name, num_classes=0)`` cannot replace the code below.
"""

from dassl.utils import Registry, UsageError, check_availability
from torch import nn
from torchvision import models

BACKBONE_REGISTRY = Registry("BACKBONE")


class Backbone(nn.Module):
    """Base class of registered backbones: `forward` returns features (N, out_features)."""

    def __init__(self):
        super().__init__()
        self._out_features = None

    @property
    def out_features(self):
        """Size of the feature vector; subclasses set `_out_features`."""
        return self._out_features


def build_backbone(name, verbose=True, **kwargs):
    """Build a backbone by name: a registered one, or a torchvision model without its last linear layer.

    Args:
        name (str): for example "resnet18", "resnet50", "vit_b_16".
        verbose (bool): print the name.
        kwargs: arguments of a registered backbone; for torchvision models `pretrained` (bool).

    Returns:
        A module with `out_features`, from images (N, 3, H, W) to features (N, out_features).

    Raises:
        UsageError: the backbone is unknown, or its weights cannot be downloaded.
    """
    own = BACKBONE_REGISTRY.registered_names()
    check_availability(name, own + models.list_models(module=models))
    if verbose:
        print(f"Backbone: {name}")
    return BACKBONE_REGISTRY.get(name)(**kwargs) if name in own else _torchvision_backbone(name, **kwargs)


def _torchvision_backbone(name, pretrained=True):
    try:
        model = models.get_model(name, weights="DEFAULT" if pretrained else None)
    except OSError as error:
        raise UsageError(
            f"cannot download the weights of {name} ({error}); for random weights set MODEL.BACKBONE.PRETRAINED False"
        ) from error
    linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UsageError(f"{name} does not end in a linear layer; register your own backbone for it")
    model.out_features = model.get_submodule(linear[-1]).in_features
    parent, _, child = linear[-1].rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())
    return model
