"""Download datasets and arrange them in the folders that this project and CoOp expect.

    python tools/prepare.py eurosat dtd --root data          # download, verify, unpack, arrange missing files
    python tools/prepare.py --list --root data               # every dataset: size, terms, whether it is ready
    python tools/prepare.py --check eurosat --root data      # compare a dataset with its split; read every image
    python tools/prepare.py fewshot eurosat --root data --seed 1 --shots 16    # the images that a run would select

After an interruption, the same command resumes. If a file cannot be downloaded from your network, put it into the
dataset's folder under the same name, or into a folder given by --from.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

from common.errors import UsageError
from common.start import add_common_options, path

from ..base import DatasetError
from .arrange import Preparation
from .check import describe, inspect, report, unreadable_images
from .sources import Source, downloadable, find, image_paths

RESERVE = 1 << 30  # bytes of the disk to leave free


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="DATASET", help="names in configs/datasets, or all; or: fewshot DATASET")
    add("--root", type=path, default=Path("data"), help="folder of the datasets (default: data)")
    add("--list", action="store_true", help="list the datasets and whether they are ready")
    add("--check", action="store_true", help="report missing and wrong files; change nothing")
    add("--quick", action="store_true", help="with --check: do not read the images")
    add("--repair", action="store_true", help="unpack again: add missing images, replace unreadable ones")
    add("--from", type=path, dest="from_dir", metavar="FOLDER", help="folder with files that you downloaded manually")
    add(
        "--mirror",
        default=os.environ.get("PREPARE_MIRROR", ""),
        metavar="URL",
        help="download every file from URL/DATASET/FILE (default: the environment variable PREPARE_MIRROR)",
    )
    add("--seed", type=int, default=1, help="with fewshot: the run's seed (1)")
    add("--shots", type=int, default=16, help="with fewshot: images per class (16)")
    add("--classes", choices=("all", "base", "new"), default="all", help="with fewshot: which classes")
    add_common_options(parser)
    args = parser.parse_intermixed_args(argv)
    if args.from_dir and not args.from_dir.is_dir():
        raise UsageError(
            f"no folder {args.from_dir}", "--from takes the folder with the files that you downloaded manually"
        )
    return args


def prepare(names: list[str], args: argparse.Namespace) -> None:
    """Prepare datasets one after the other; if one fails, continue with the others.

    The disk must have room for all of them before the first download begins.
    """
    failures: list[UsageError] = []

    def attempt(name: str, step: Callable[[], None]) -> bool:
        try:
            step()
        except (UsageError, OSError) as error:
            failures.append(as_usage_error(error))
            if len(names) > 1:
                print(f"{name}: {failures[-1]}")
            return False
        return True

    waiting: list[Preparation] = []
    sizes: list[tuple[int, int]] = []

    def begin(source: Source) -> None:
        broken = find_broken(source, args.root) if args.repair else []
        preparation = Preparation(source, args.root, args.from_dir, args.mirror, args.repair, broken)
        if preparation.ready and not preparation.work.exists():
            print(f"{source.name}: ready")
        else:
            sizes.append(preparation.space())
            waiting.append(preparation)

    for name in names:
        source = find(name)
        if source.files:
            attempt(name, partial(begin, source))
        else:
            print(f"{name}: nothing to prepare")
    check_space(sizes, args.root)
    for preparation in waiting:
        name = preparation.source.name
        if attempt(name, preparation.run):
            print(f"{name}: ready: {describe(preparation.source.read_quietly(args.root))}")
    if len(names) == 1 and failures:
        raise failures[0]
    if failures:
        raise UsageError(f"{len(failures)} of {len(names)} datasets could not be prepared", "see above")


def as_usage_error(error: UsageError | OSError) -> UsageError:
    """Add a remedy to the error of a full disk, or of a folder that cannot be read or written."""
    if isinstance(error, UsageError):
        return error
    remedy = "fix this or choose another --root, then run the same command again"
    return UsageError(error.strerror or str(error), remedy, error.filename)


def find_broken(source: Source, root: Path) -> list[str]:
    """Existing images that cannot be read."""
    try:
        dataset = source.read_quietly(root)
    except DatasetError:
        return []
    return unreadable_images(dataset, [name for name in image_paths(dataset) if (dataset.root / name).is_file()])


def check_space(sizes: list[tuple[int, int]], root: Path) -> None:
    """Check that the disk has room for all images, and for the largest archive while it is unpacked."""
    need = sum(images for images, _ in sizes) + max((archive for _, archive in sizes), default=0)
    place = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if need and need + RESERVE > free:
        raise UsageError(
            f"{need / 1e9:.1f} GB are needed in {place}, {free / 1e9:.1f} GB are free",
            "free some space, or choose another --root",
        )


def show_list(names: list[str], args: argparse.Namespace) -> None:
    """Print a line per dataset, then a command for the first missing one and for the first incomplete one."""
    first: dict[str, str] = {}
    for name in names:
        source = find(name)
        preparation = Preparation(source, args.root, args.from_dir)
        state = "ready" if preparation.ready else "incomplete" if preparation.folder.is_dir() else "not there"
        terms = "nothing to download"
        if source.files:
            dataset = source.dataset
            how = "manually" if dataset.by_hand else "downloaded"
            terms = f"{source.size / 1e9:6.1f} GB, {how}; {dataset.licence} ({dataset.page})"
            first.setdefault(state, source.command(args.root))
        print(f"{name:16} {state:10} {terms}")
    print(f"under {args.root}")
    if "not there" in first:
        print(f"to get one: {first['not there']}")
    if "incomplete" in first:
        print(f"to see missing files: {first['incomplete']} --check")


def show_fewshot(names: list[str], args: argparse.Namespace) -> None:
    """Print the images that a run trains and validates on, in its order, relative to the folder of images."""
    if len(names) != 1:
        raise UsageError("fewshot needs one dataset", "python tools/prepare.py fewshot DATASET --seed 1 --shots 16")
    if args.seed < 0:
        raise UsageError(f"--seed {args.seed} selects other images every time", "use the run's seed, from 0")
    source, options = find(names[0]), ["DATASET.NUM_SHOTS", str(args.shots), "DATASET.SUBSAMPLE_CLASSES", args.classes]
    if getattr(source.dataset, "test_only", False):
        raise UsageError(f"{source.name} has test images only", "choose a dataset with training images")
    with redirect_stdout(sys.stderr):
        dataset = source.read(args.root, *options, seed=args.seed)
    for part, items in (("train", dataset.train_x), ("val", dataset.val or [])):
        for item in items:
            print(part, os.path.relpath(item.impath, dataset.images))


def check(names: list[str], args: argparse.Namespace) -> None:
    """Print the state of each dataset; an error at the end if something is missing or wrong."""
    failed = 0
    for name in names:
        findings = inspect(find(name), args.root, not args.quick)
        print("\n".join(report(findings)))
        failed += not findings.ok
    if failed:
        raise UsageError(f"{failed} of {len(names)} datasets are incomplete or wrong", "see above")


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    every = "all" in args.names[:1] or (not args.names and (args.list or args.check))
    names = list(dict.fromkeys(downloadable() if every else args.names))
    if not names:
        raise UsageError("no dataset is given", "python tools/prepare.py --list shows their names")
    try:
        if names[0] == "fewshot":
            show_fewshot(names[1:], args)
        elif args.list:
            show_list(names, args)
        elif args.check:
            check(names, args)
        else:
            prepare(names, args)
    except BrokenPipeError:  # `head` has read enough
        raise
    except OSError as error:
        raise as_usage_error(error) from None
