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
    """A reproducible fp32 tensor for a parameter of this name and shape, scaled so that activations stay moderate."""
    z: np.ndarray = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape, dtype=np.float32)
    parent, name = (["", *key.split(".")])[-2:]
    if name == "logit_scale":
        z = np.asarray(4.6052)
    elif parent.startswith("ln_"):
        z = 1 + 0.1 * z if name == "weight" else 0.1 * z
    elif name.endswith("bias"):
        z = 0.02 * z
    elif key.endswith("token_embedding.weight"):
        z = 0.05 * z
    elif name in ("positional_embedding", "class_embedding"):
        z = 0.04 * z
    elif key.endswith("conv1.weight"):
        z = 0.03 * z
    elif key in ("text_projection", "visual.proj"):
        z = z * np.float32(shape[0] ** -0.5)
    elif name.endswith("weight") and len(shape) == 2:
        z = z * np.float32(shape[1] ** -0.5)
    else:
        z = 0.05 * z
    return torch.from_numpy(np.asarray(z, dtype=np.float32))


def random_clip(
    arch: str = "ViT-B-16", vision: dict | None = None, text: dict | None = None, embed_dim: int | None = None
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
        # A ResNet's convolutions and BatchNorm keep open_clip's own initialisation, which is made for them.
        if hasattr(model.visual, "transformer") or not key.startswith(("visual.layer", "visual.bn", "visual.conv")):
            parameter.data = random_tensor(key, tuple(parameter.shape))
    return model.eval()
