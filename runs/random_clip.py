"""Write a CLIP with random weights: for rehearsals, tests and timing without real weights.

    python tools/random_clip.py vit_b16.pt
    python tools/random_clip.py small.pt --image-size 64 --vision-layers 4 --text-layers 4

Its predictions are noise. The weights depend only on the sizes and on the name of each tensor.
"""

import io

from common.errors import UsageError, check_name, one_line
from common.files import write_bytes
from common.start import Parser, at_least, path, required_packages


def main() -> None:
    parser = Parser(description=str(__doc__).splitlines()[0])
    parser.add_argument("file", type=path, help="where to write it: .pt, or .safetensors")
    parser.add_argument(
        "--arch", default="ViT-B-16", metavar="ARCH", help="an architecture of open_clip"
    )
    parser.add_argument("--embed-dim", type=at_least(1))
    for size in (
        "image-size",
        "patch-size",
        "vision-width",
        "vision-layers",
        "text-width",
        "text-layers",
    ):
        parser.add_argument(f"--{size}", type=at_least(1))
    args = parser.parse_args()
    if args.file.is_dir():
        raise UsageError(
            f"{args.file} is a folder", "give the path of the file to write", args.file
        )
    with required_packages():
        import open_clip
        import torch
        from safetensors.torch import save

        from clip.random_weights import random_clip

    check_name(args.arch, open_clip.list_models(), "architecture")
    vision = {"image_size": args.image_size, "patch_size": args.patch_size}
    vision |= {"width": args.vision_width, "layers": args.vision_layers}
    text = {"width": args.text_width, "layers": args.text_layers}
    torch.manual_seed(0)
    vision, text = ({key: size for key, size in tower.items() if size} for tower in (vision, text))
    try:
        state = random_clip(args.arch, vision, text, args.embed_dim).state_dict()
    except (
        ArithmeticError,
        AssertionError,
        TypeError,
        ValueError,
    ) as error:  # open_clip checks no sizes
        what = f"{args.arch} cannot have these sizes ({one_line(error)})"
        raise UsageError(
            what, "give others (widths are multiples of 64), or leave them out"
        ) from error
    args.file.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(args.file, save(state) if args.file.suffix == ".safetensors" else buffer.getvalue())
    print(f"{args.file}: {sum(tensor.numel() for tensor in state.values()):,} random numbers")
