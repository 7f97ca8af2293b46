"""Options of the programs of this folder."""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.fits import parser as base

from . import images


def parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """The options that the programs have in common."""
    made = base(description)
    add = made.add_argument
    add("--sources", type=Path, nargs="+", default=[], help="opened packages")
    add("--sets", nargs="+", default=[*images.SETS])
    add("--encoders", nargs="+")
    add("--shots", nargs="+", type=int)
    add("--seeds", nargs="+", type=int, default=range(1, 11))
    made.set_defaults(**defaults)
    return made


def parser_of_heads(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """Of a program that fits heads."""
    heads = parser(description, **defaults)
    heads.add_argument("--methods", nargs="+", default=[], help="heads to try (default: all)")
    return heads
