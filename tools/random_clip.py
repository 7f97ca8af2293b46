"""Write a CLIP with random weights: for rehearsals, tests and timing, where no real one is at hand.

    python -m tools.random_clip vit_b16.pt
    python -m tools.random_clip small.pt --image-size 64 --vision-layers 4 --text-layers 4

What it classifies is noise. The weights depend only on the sizes and on each tensor's name.
"""

import argparse
import zlib
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor

from clip import CLIP


def random_tensor(key: str, shape: tuple[int, ...]) -> Tensor:
    """A reproducible fp32 tensor for a parameter of this name and shape, scaled so that activations stay moderate."""
    z = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape, dtype=np.float32)
    parent, name = (["", *key.split(".")])[-2:]
    if name == "logit_scale":
        z = np.float32(4.6052)
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


def random_clip(arch: str = "ViT-B-16", vision: dict | None = None, text: dict | None = None, embed_dim=None) -> CLIP:
    """A CLIP of an open_clip architecture, sizes overridden by `vision` and `text`, with QuickGELU as OpenAI's have."""
    config = open_clip.get_model_config(arch)
    config["vision_cfg"] |= vision or {}
    config["text_cfg"] |= text or {}
    config["embed_dim"] = embed_dim or config["embed_dim"]
    config["text_cfg"]["heads"] = config["text_cfg"]["width"] // 64
    model = CLIP(**config | {"quick_gelu": True}, cast_dtype=torch.float16)
    for key, parameter in model.named_parameters():
        # A ResNet's convolutions and BatchNorm keep open_clip's own initialisation, which is made for them.
        if hasattr(model.visual, "transformer") or not key.startswith(("visual.layer", "visual.bn", "visual.conv")):
            parameter.data = random_tensor(key, tuple(parameter.shape))
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="where to write it: .pt, or .safetensors")
    parser.add_argument("--arch", default="ViT-B-16", choices=open_clip.list_models(), metavar="ARCH")
    parser.add_argument("--embed-dim", type=int)
    for flag, size in {
        "--image-size": "vision.image_size",
        "--patch-size": "vision.patch_size",
        "--vision-width": "vision.width",
        "--vision-layers": "vision.layers",
        "--text-width": "text.width",
        "--text-layers": "text.layers",
    }.items():
        parser.add_argument(flag, type=int, dest=size)
    args = vars(parser.parse_args())
    towers = {
        tower: {k.split(".")[1]: v for k, v in args.items() if k.startswith(f"{tower}.") and v}
        for tower in ("vision", "text")
    }
    torch.manual_seed(0)
    state = random_clip(args["arch"], towers["vision"], towers["text"], args["embed_dim"]).state_dict()
    args["file"].parent.mkdir(parents=True, exist_ok=True)
    (save_file if args["file"].suffix == ".safetensors" else torch.save)(state, args["file"])
    print(f"{args['file']}: {sum(tensor.numel() for tensor in state.values()):,} random numbers")


if __name__ == "__main__":
    main()
