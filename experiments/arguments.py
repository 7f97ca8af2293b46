"""The command line of train.py, and argument types that several commands share. Nothing here waits for torch."""

import argparse
import ast
import time
from collections.abc import Callable
from functools import cache

from common.start import ROOT, add_common_options


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """CoOp's command line."""
    parser = argparse.ArgumentParser(
        description="Train or test one method on one dataset.",
        epilog="Trailing KEY VALUE pairs override the YAML files, e.g. OPTIM.LR 0.002 DATASET.NUM_SHOTS 16. "
        f"Methods: {', '.join(method_names())}.",
    )
    parser.add_argument("--root", default="", help="folder of the datasets")
    parser.add_argument("--output-dir", default="", help="folder for the results of this run (default: ./output)")
    parser.add_argument("--resume", default="", help="folder of a run to resume (default: the output folder)")
    parser.add_argument("--seed", type=int, default=-1, help="chooses the few-shot images and fixes all randomness")
    parser.add_argument("--source-domains", nargs="+", help="for trainers of domain adaptation and generalisation")
    parser.add_argument("--target-domains", nargs="+", help="for trainers of domain adaptation and generalisation")
    parser.add_argument("--transforms", nargs="+", help="data augmentation, replaces INPUT.TRANSFORMS")
    parser.add_argument("--config-file", default="", help="YAML file of the method")
    parser.add_argument("--dataset-config-file", default="", help="YAML file of the dataset")
    parser.add_argument("--trainer", default="", help="name of the method, see below")
    parser.add_argument("--backbone", default="", help="ViT-B/16, RN50, ..., small, a weight file, or architecture:tag")
    parser.add_argument("--head", default="", help="name of the head (Dassl's own trainers)")
    parser.add_argument("--eval-only", action="store_true", help="test the prompts in --model-dir, do not train")
    parser.add_argument("--model-dir", default="", help="output folder of the run to test")
    parser.add_argument("--load-epoch", type=int, help="the epoch to test (default: the best, else the newest)")
    parser.add_argument("--skip-finished", action="store_true", help="do nothing if this run is already finished")
    parser.add_argument("--quiet", action="store_true", help="print errors and the result only; log.txt has everything")
    parser.add_argument("--no-train", action="store_true", help="build everything, then stop")
    parser.set_defaults(began=time.time())
    add_common_options(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="settings to override")
    return parser.parse_args(argv)


@cache
def method_names() -> list[str]:
    """The methods in trainers/, by the decorators in their source: importing them takes seconds."""
    files = sorted((ROOT / "trainers").glob("*.py"))
    classes = (node for file in files for node in ast.parse(file.read_bytes()).body if isinstance(node, ast.ClassDef))
    return [node.name for node in classes if "TRAINER_REGISTRY.register()" in map(ast.unparse, node.decorator_list)]


def at_least(least: int) -> Callable[[str], int]:
    """The argparse type of integers from `least` on."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected an integer >= {least}, got {text!r}")
        return int(text)

    return number
