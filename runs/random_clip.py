"""Write a CLIP with random weights: for rehearsals, tests and timing without real weights.

    python tools/random_clip.py vit_b16.pt
    python tools/random_clip.py small.pt --image-size 64 --vision-layers 4 --text-layers 4

Its predictions are noise. The weights depend only on the sizes and on the name of each tensor.
"""

import io
from argparse import Namespace

from common.errors import UsageError, check_name, one_line
from common.files import write_bytes
from common.start import Parser, at_least, path, required_packages

# Of a tower: arguments of the command by settings of open_clip
VISION = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "width": "vision_width",
    "layers": "vision_layers",
}
TEXT = {"width": "text_width", "layers": "text_layers"}


def parse() -> Namespace:
    parser = Parser(description=str(__doc__).splitlines()[0])
    parser.add_argument("file", type=path, help="where to write it: .pt, or .safetensors")
    parser.add_argument(
        "--arch", default="ViT-B-16", metavar="ARCH", help="an architecture of open_clip"
    )
    parser.add_argument("--embed-dim", type=at_least(1))
    for size in (*VISION.values(), *TEXT.values()):
        parser.add_argument(f"--{size.replace('_', '-')}", type=at_least(1))
    args = parser.parse_args()
    if args.file.is_dir():
        remedy = "give the path of the file to write"
        raise UsageError(f"{args.file} is a folder", remedy, args.file)
    return args


def sizes_of(tower: dict[str, str], args: Namespace) -> dict[str, int]:
    """The sizes of a tower that the command gives."""
    sizes = {key: getattr(args, name) for key, name in tower.items()}
    return {key: size for key, size in sizes.items() if size}


def main() -> None:
    args = parse()
    with required_packages():
        import open_clip
        import torch
        from safetensors.torch import save

        from clip.random_weights import random_clip

    check_name(args.arch, open_clip.list_models(), "architecture")
    vision = sizes_of(VISION, args)
    text = sizes_of(TEXT, args)
    torch.manual_seed(0)
    try:
        state = random_clip(args.arch, vision, text, args.embed_dim).state_dict()
    # open_clip checks no sizes
    except (ArithmeticError, AssertionError, TypeError, ValueError) as error:
        fault = f"{args.arch} cannot have these sizes ({one_line(error)})"
        remedy = "give others (widths are multiples of 64), or leave them out"
        raise UsageError(fault, remedy) from error
    args.file.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(args.file, save(state) if args.file.suffix == ".safetensors" else buffer.getvalue())
    print(f"{args.file}: {sum(tensor.numel() for tensor in state.values()):,} random numbers")
