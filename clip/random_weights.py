"""CLIPs with random weights: for rehearsals, tests and timing.

Their predictions are noise. The weights depend only on the sizes and on the name of each tensor.
"""

import zlib

import numpy as np
import open_clip
import torch
from torch import Tensor

from .backbone import CLIP


def random_tensor(key: str, shape: tuple[int, ...]) -> Tensor:
    """A reproducible fp32 tensor for a parameter of this name and shape, scaled so that activations
    stay moderate.
    """
    parent, name = (["", *key.split(".")])[-2:]
    if name == "logit_scale":
        return torch.tensor(4.6052)
    if parent.startswith("ln_"):
        scale = 0.1
    elif name.endswith("bias"):
        scale = 0.02
    elif name in ("positional_embedding", "class_embedding"):
        scale = 0.04
    elif key.endswith("conv1.weight"):
        scale = 0.03
    elif key in ("text_projection", "visual.proj"):
        scale = shape[0] ** -0.5
    elif name.endswith("weight") and len(shape) == 2 and not key.endswith("token_embedding.weight"):
        scale = shape[1] ** -0.5
    else:
        scale = 0.05
    z = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(
        shape, dtype=np.float32
    ) * np.float32(scale)
    mean = np.float32(parent.startswith("ln_") and name == "weight")
    return torch.from_numpy(np.asarray(z + mean))


def random_clip(
    arch: str = "ViT-B-16",
    vision: dict | None = None,
    text: dict | None = None,
    embed_dim: int | None = None,
) -> CLIP:
    """A random CLIP of an open_clip architecture, with QuickGELU as in OpenAI's models.

    Args:
        arch: a name in `open_clip.list_models()`.
        vision, text: settings that override those of the image and text tower, such as sizes.
        embed_dim: joint width, by default that of the architecture.
    """
    config = open_clip.get_model_config(arch)
    config["vision_cfg"] |= vision or {}
    config["text_cfg"] |= text or {}
    config["embed_dim"] = embed_dim or config["embed_dim"]
    config["text_cfg"]["heads"] = config["text_cfg"]["width"] // 64
    model = CLIP(**config | {"quick_gelu": True})
    for key, parameter in model.named_parameters():
        # A ResNet's convolutions and BatchNorm keep open_clip's own initialisation, which is made
        # for them.
        if hasattr(model.visual, "transformer") or not key.startswith(
            ("visual.layer", "visual.bn", "visual.conv")
        ):
            parameter.data = random_tensor(key, tuple(parameter.shape))
    return model.eval()
