"""Fetch backbones once, with their configuration and tokeniser, and check that they can be read.

    python tools/prepare.py backbone ViT-B-16-SigLIP:webli  # a pair of open_clip: model, weights
    python tools/prepare.py backbone hf-hub:timm/PE-Core-B-16  # a repository of the Hub
    python tools/prepare.py backbone ViT-B/16 path/to/a/folder  # any name that --backbone takes

All runs find them in the caches of open_clip and of the Hugging Face Hub (HF_HOME), and need no
network then.
"""

import argparse
import shutil
from pathlib import Path

import open_clip

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


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="+", metavar="NAME", help="what --backbone of train.py takes"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    for name in args.names:
        fetch(name)
