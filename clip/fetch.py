"""Fetch backbones once, with their configuration and tokeniser, and check that they can be read.

    python tools/prepare.py backbone ViT-B-16-SigLIP:webli  # a pair of open_clip: model, weights
    python tools/prepare.py backbone hf-hub:timm/PE-Core-B-16  # a repository of the Hub
    python tools/prepare.py backbone ViT-B/16 path/to/a/folder  # any name that --backbone takes
    python tools/prepare.py backbone tuned.pt --base ViT-B/16  # how much was changed, by block

All runs find them in the caches of open_clip and of the Hugging Face Hub (HF_HOME), and need no
network then.
"""

import argparse
import re
import shutil
from collections import defaultdict
from pathlib import Path

import open_clip
from torch import Tensor

from common.errors import UsageError, one_line
from common.start import Parser

from . import hub
from .backbone import is_pair, is_published, load_backbone, preprocessing, weights_sha256


def repository_of(name: str) -> str:
    """The repository of a hub that has the weights of a name; empty if it is not known."""
    if name.startswith(hub.PREFIX):
        return name.removeprefix(hub.PREFIX)
    pretrained = open_clip.get_pretrained_cfg(*name.split(":", 1)) if is_pair(name) else {}
    return str(pretrained.get("hf_hub", "")).rpartition("/")[0]


def show_size(name: str) -> None:
    """Print how much a download takes; nothing if it is here, or the hub does not say it.

    Raises:
        UsageError: the disk has less.
    """
    repository = repository_of(name)
    if hub.cached_file(repository, hub.WEIGHTS):
        return
    try:
        size = hub.bytes_of(repository) if repository else 0
    except Exception as error:  # of any library that asks the hub; the download reports the error
        print(f"{name}: its size is not known ({one_line(error)})")
        return
    free = shutil.disk_usage(Path.home()).free
    if size:
        print(f"{name}: {size / 1e9:.1f} GB, of {free / 1e9:.1f} GB that are free")
    if size > free:
        raise UsageError(
            f"{name} needs {size / 1e9:.1f} GB",
            "free them, or set HF_HOME to a folder on another disk",
        )


def fetch(name: str) -> None:
    """Fetch a backbone, read it, and print what it is."""
    if is_published(name):
        show_size(name)
    model = load_backbone(name)
    size = preprocessing(name).get("SIZE") or model.visual.image_size
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{name}: ready: {weights:,} weights, images of {size}, {model.context_length} tokens "
        f"({model.tokenizer.name})"
    )
    print(f"{weights_sha256(name)}  {name}")


def show_changes(name: str, base: str) -> None:
    """Print how much the weights of a backbone differ from those of its base, block by block: the
    norm of the difference in percent of the norm of the base.

    Raises:
        UsageError: the backbone has other tensors than its base.
    """
    tuned = load_backbone(name).state_dict()
    before = load_backbone(base).state_dict()
    other = [
        key
        for key in sorted(tuned.keys() | before.keys())
        if key not in tuned or key not in before or tuned[key].shape != before[key].shape
    ]
    if other:
        raise UsageError(
            f"{name} has other tensors than {base}, such as {other[0]}",
            "give the backbone that it was tuned from by --base",
        )
    changes: dict[str, float] = defaultdict(float)
    sizes: dict[str, float] = defaultdict(float)
    for key, tensor in before.items():
        if tensor.is_floating_point():
            changes[block_of(key)] += square(tuned[key].double() - tensor)
            sizes[block_of(key)] += square(tensor.double())
    if not any(changes.values()):
        print(f"{name}: its weights are those of {base}")
        return
    print(f"{name}: change of the weights of {base}")
    for block, size in sizes.items():
        share = (changes[block] / size) ** 0.5 if size else 0.0
        print(f"  {block:32} {100 * share:8.3f} %")


def square(tensor: Tensor) -> float:
    """The sum of the squares of its entries."""
    return float(tensor.square().sum())


def block_of(key: str) -> str:
    """The block of a tensor; its module outside of blocks."""
    block = re.match(r".*\.(?:resblocks|blocks|layers?)\.\d+", key)
    return block[0] if block else key.rpartition(".")[0] or key


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone", choices=["backbone"])
    parser.add_argument(
        "names", nargs="+", metavar="NAME", help="what --backbone of train.py takes"
    )
    words = "the backbone that NAME was tuned from: print the change of each block"
    parser.add_argument("--base", default="", metavar="NAME", help=words)
    return parser.parse_intermixed_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    for name in args.names:
        fetch(name)
        if args.base:
            show_changes(name, args.base)
