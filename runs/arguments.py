"""The command line of train.py. Nothing here waits for torch, unless --plugin is given."""

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from dassl.config import flatten, get_cfg_default, read_config
from dassl.data.datasets import DATASET_REGISTRY

import datasets
from common.errors import UsageError
from common.files import RESULTS_FILE, check_folder
from common.removed import instead_of
from common.start import ROOT, Parser, of_project
from inference.arguments import add_plugin_option

TRACKERS = "tensorboard", "wandb"  # of --report-to
UNUSED = "for compatibility with Dassl; not used by the methods here"
# Settings by the options that give them
OPTIONS = {
    "DATASET.ROOT": "root",
    "OUTPUT_DIR": "output_dir",
    "RESUME": "resume",
    "DATASET.SOURCE_DOMAINS": "source_domains",
    "DATASET.TARGET_DOMAINS": "target_domains",
    "INPUT.TRANSFORMS": "transforms",
    "TRAINER.NAME": "trainer",
    "MODEL.BACKBONE.NAME": "backbone",
    "MODEL.HEAD.NAME": "head",
    "TEST.OOD": "ood",
    "SEED": "seed",
}


@cache
def _parser() -> Parser:
    folders = sorted(
        folder.name for folder in (ROOT / "configs/trainers").iterdir() if folder.is_dir()
    )
    parser = Parser(
        description="Train or test one method on one dataset.",
        epilog="Trailing KEY VALUE pairs override the YAML files, e.g. OPTIM.LR 0.002 "
        f"DATASET.NUM_SHOTS 16. Methods (docs/methods.md): {', '.join(folders)}.",
    )
    add_settings(parser)
    add_behaviour(parser)
    add_plugin_option(parser)
    words = "settings to override"
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help=words)
    return parser


def add_settings(parser: Parser) -> None:
    """Options for what a run learns, and from what."""
    add = parser.add_argument
    add("--root", default="", help="folder of the datasets")
    add("--output-dir", default="", help="folder for the results of this run (default: ./output)")
    add("--resume", default="", help="folder of a run to resume (default: the output folder)")
    text = (
        "choose the few-shot images and fix all randomness. Several seeds train one after another: "
        "--output-dir must then contain {seed}"
    )
    add("--seed", type=seeds, default=-1, metavar="SEED [SEED ...]", help=text)
    add("--source-domains", nargs="+", help=UNUSED)
    add("--target-domains", nargs="+", help=UNUSED)
    add("--transforms", nargs="+", help="data augmentation that replaces INPUT.TRANSFORMS")
    add("--config-file", type=of_project, default="", help="YAML file of the method")
    add("--dataset-config-file", type=of_project, default="", help="YAML file of the dataset")
    add("--trainer", default="", help="name of the method, see below")
    add(
        "--backbone",
        default="",
        help="ViT-B/16, RN50, ..., small, a weight file, or architecture:tag",
    )
    add("--head", default="", help=UNUSED)


def add_behaviour(parser: Parser) -> None:
    """Options for what the command does besides training."""
    add = parser.add_argument
    add("--eval-only", action="store_true", help="test the prompts in --model-dir without training")
    add("--model-dir", default="", help="output folder of the run to test")
    text = (
        "the epoch to test (default: model-best.pth.tar; without one, the newest epoch, but for "
        "trainers of your own, which need it)"
    )
    add("--load-epoch", type=int, help=text)
    text = (
        "datasets of out-of-distribution images to detect in the test (new: its new classes, "
        "for base ones)"
    )
    add("--ood", type=names, default=[], metavar="A,B", help=text)
    add(
        "--chosen",
        default="",
        metavar="FILE",
        help="settings that the trials of a study have chosen",
    )
    add("--skip-finished", action="store_true", help="do nothing if this run is already finished")
    add(
        "--quiet",
        action="store_true",
        help="print errors and the result only; log.txt has everything",
    )
    add("--no-train", action="store_true", help="build everything, then stop")
    text = "comma-separated trackers: tensorboard, wandb (default: tensorboard)"
    add("--report-to", type=trackers, default=[], metavar="A,B", help=text)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """CoOp's command line."""
    args = _parser().parse_args(join_seeds(sys.argv[1:] if argv is None else argv))
    args.opts = args.opts[args.opts[:1] == ["--"] :]  # the separator is not a key
    check_pairs(args.opts)
    for option, value in {"--model-dir": args.model_dir, "--load-epoch": args.load_epoch}.items():
        if not args.eval_only and value not in ("", None):
            remedy = "add --eval-only to test these prompts, or leave it out"
            raise UsageError(f"{option} has no use in training", remedy)
    if args.load_epoch is not None and not args.model_dir:
        raise UsageError(
            "--load-epoch has no use without --model-dir", "name the run to test, or leave it out"
        )
    return args


def check_pairs(pairs: list) -> None:
    """Check that these are pairs of KEY VALUE, without an option among them."""
    odd = len(pairs) % 2
    for place, word in enumerate(map(str, pairs)):
        if word.startswith("--") and (odd or place % 2 == 0):  # a value may begin like one
            remedy = f"put {word} before them (for scripts: MPL_DEBUG=1 instead of --debug)"
            raise UsageError(f"the option {word} is among the KEY VALUE pairs", remedy)
    if odd:
        raise UsageError(
            f"{pairs[-1]!r} has no value", "what follows the options are pairs of KEY VALUE"
        )


def read_files(args: argparse.Namespace) -> dict[str, list[tuple[str, dict]]]:
    """By option, the content of a YAML file after that of its bases: [(path, {key: value})]."""
    named = {
        "--dataset-config-file": args.dataset_config_file,
        "--config-file": args.config_file,
    }
    return {option: read_config(file) for option, file in named.items() if file}


def settings_of(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings by key that options give, and those of the KEY VALUE pairs, as text."""
    options = {key: getattr(args, name) for key, name in OPTIONS.items()}
    given = {key: x for key, x in options.items() if x not in (None, "", [], -1)}
    return given, dict(zip(args.opts[::2], args.opts[1::2], strict=True))


def check_places(args: argparse.Namespace) -> None:
    """Check that what a run needs is given, by an option, a YAML file or KEY VALUE pairs, and that
    the folders that these name exist.
    """
    options, pairs = settings_of(args)
    given: dict[str, Any] = {"OUTPUT_DIR": "./output"}
    for content in read_files(args).values():
        for _, tree in content:
            given |= flatten(tree)
    given |= options | pairs
    output = given["OUTPUT_DIR"]
    if args.skip_finished and output and Path(str(output), RESULTS_FILE).is_file():
        return
    if args.model_dir:
        remedy = (
            "train first, or check --model-dir (scripts: SEED, SHOTS, CFG, OUT and, for "
            "xd_test.sh, SOURCE)"
        )
        check_folder(Path(args.model_dir), "no trained prompts in", remedy)
    needed = {
        "--trainer": given.get("TRAINER.NAME"),
        # A YAML file without a name of a dataset may have an unknown key, which is reported later
        "--dataset-config-file": args.dataset_config_file or given.get("DATASET.NAME"),
        "--root": given.get("DATASET.ROOT"),
        "--output-dir": output,
        "--config-file": args.config_file or args.opts,  # all of its keys may be given as pairs
    }
    for option, value in needed.items():
        if not value:
            raise UsageError(f"{option} is missing", "see python train.py --help")
    check_dataset_folder(given.get("DATASET.NAME"), str(given["DATASET.ROOT"]))


def check_dataset_folder(name: object, root: str) -> None:
    """Raise UsageError if the folder of a dataset of this project is missing."""
    known = name in DATASET_REGISTRY.registered_names()
    kind: Any = DATASET_REGISTRY.get(name) if known else None
    if getattr(kind, "is_synthetic", True):  # datasets of other projects do not say it
        return
    if not Path(os.path.expanduser(root), kind.dataset_dir).is_dir():
        cfg = get_cfg_default()
        datasets.extend_cfg(cfg)
        cfg.DATASET.NAME = name
        cfg.DATASET.ROOT = root
        kind(cfg, images=False)  # raises its own error


def names(text: str) -> list[str]:
    """The argparse type of names with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def trackers(text: str) -> list[str]:
    """The argparse type of `tensorboard,wandb`."""
    given = names(text)
    if unknown := [name for name in given or [text] if name not in TRACKERS]:
        remedy = instead_of(unknown[0]) or f"give some of {','.join(TRACKERS)}"
        raise argparse.ArgumentTypeError(f"there is no tracker {unknown[0]!r}: {remedy}")
    return list(dict.fromkeys(given))


def seeds(text: str) -> int | tuple[int, ...]:
    """The argparse type of one seed, or of several with spaces between them."""
    words = text.split()
    if not words or not all(re.fullmatch("-?[0-9]+", word) for word in words):
        raise argparse.ArgumentTypeError(
            f"expected integers with spaces between them, got {text!r}"
        )
    numbers = tuple(map(int, words))
    return numbers if len(numbers) > 1 else numbers[0]


def join_seeds(argv: list[str]) -> list[str]:
    """The arguments with all seeds in one: argparse would take the KEY VALUE pairs after several
    for seeds, too.
    """
    joined: list[str] = []
    for argument in argv:
        follows = joined[-2:-1] == ["--seed"] and re.fullmatch("[0-9]+", argument)
        joined.append(f"{joined.pop()} {argument}" if follows else argument)
    return joined


def per_seed(args: argparse.Namespace) -> list[argparse.Namespace]:
    """The arguments of the run of each seed; {seed} in the path of a folder becomes the seed."""
    every = args.seed if isinstance(args.seed, tuple) else (args.seed,)
    folders = {name: getattr(args, name) for name in ("output_dir", "model_dir", "resume")}
    if args.seed == -1 and any("{seed}" in path for path in folders.values()):
        raise UsageError(
            "a folder has {seed} in its path, and there is no --seed", "give the seed by --seed"
        )
    if len(every) > 1:
        check_seeds(every, folders, args.opts[::2])
    runs = []
    for seed in every:
        own = {name: path.replace("{seed}", str(seed)) for name, path in folders.items()}
        runs.append(argparse.Namespace(**vars(args) | {"seed": seed} | own))
    return runs


def check_seeds(every: Sequence[int], folders: Mapping[str, str], keys: Sequence[str]) -> None:
    """Raise UsageError unless several seeds differ, and have folders of their own."""
    if len(set(every)) < len(every) or min(every) < 0:
        raise UsageError(f"--seed is {' '.join(map(str, every))}", "give each seed once, from 0 on")
    if shared := {"SEED", "OUTPUT_DIR", "RESUME"}.intersection(keys):
        raise UsageError(
            f"{min(shared)} is one value for several seeds", "use --seed, --output-dir and --resume"
        )
    for name, path in folders.items():
        if "{seed}" not in path and (path or name == "output_dir"):
            fault = f"--{name.replace('_', '-')} {path} is one folder for several seeds"
            raise UsageError(fault, "put {seed} in it, as in output/seed{seed}")
