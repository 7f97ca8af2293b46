"""Write a CLIP with random weights: for rehearsals, tests and timing without real weights.

    python tools/random_clip.py vit_b16.pt
    python tools/random_clip.py small.pt --image-size 64 --vision-layers 4 --text-layers 4

Its predictions are noise. The weights depend only on the sizes and on the name of each tensor.
"""

import argparse
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

from clip.random_weights import random_clip
from common.files import replacing
from common.start import add_common_options, at_least


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("file", type=Path, help="where to write it: .pt, or .safetensors")
    parser.add_argument("--arch", default="ViT-B-16", choices=open_clip.list_models(), metavar="ARCH")
    parser.add_argument("--embed-dim", type=at_least(1))
    for flag, size in {
        "--image-size": "vision.image_size",
        "--patch-size": "vision.patch_size",
        "--vision-width": "vision.width",
        "--vision-layers": "vision.layers",
        "--text-width": "text.width",
        "--text-layers": "text.layers",
    }.items():
        parser.add_argument(flag, type=at_least(1), dest=size)
    add_common_options(parser)
    args = vars(parser.parse_args())
    towers = {
        tower: {k.split(".")[1]: v for k, v in args.items() if k.startswith(f"{tower}.") and v}
        for tower in ("vision", "text")
    }
    torch.manual_seed(0)
    state = random_clip(args["arch"], towers["vision"], towers["text"], args["embed_dim"]).state_dict()
    args["file"].parent.mkdir(parents=True, exist_ok=True)
    with replacing(args["file"]) as partial:
        (save_file if args["file"].suffix == ".safetensors" else torch.save)(state, partial)
    print(f"{args['file']}: {sum(tensor.numel() for tensor in state.values()):,} random numbers")
