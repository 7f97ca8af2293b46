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
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from common.errors import UsageError
from common.start import add_common_options, path

from .arrange import Preparation
from .check import describe, inspect
from .sources import downloadable, find

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
    add("--from", type=path, dest="from_dir", metavar="FOLDER", help="folder with files that you downloaded manually")
    help_of_mirror = "download every file from URL/DATASET/FILE (default: the environment variable PREPARE_MIRROR)"
    add("--mirror", default=os.environ.get("PREPARE_MIRROR", ""), metavar="URL", help=help_of_mirror)
    add("--seed", type=int, default=1, help="with fewshot: the run's seed (1)")
    add("--shots", type=int, default=16, help="with fewshot: images per class (16)")
    add("--classes", choices=("all", "base", "new"), default="all", help="with fewshot: which classes")
    add_common_options(parser)
    args = parser.parse_intermixed_args(argv)
    if args.from_dir and not args.from_dir.is_dir():
        remedy = "--from takes the folder with the files that you downloaded manually"
        raise UsageError(f"no folder {args.from_dir}", remedy)
    return args


def prepare(names: list[str], args: argparse.Namespace) -> None:
    """Prepare datasets one after the other; if one fails, continue with the others.

    The disk must have enough space for all of them before the first download begins.
    """
    failures: list[UsageError] = []

    @contextmanager
    def collected(name: str) -> Iterator[None]:
        try:
            yield
        except (UsageError, OSError) as error:
            if isinstance(error, OSError):
                remedy = "fix this or choose another --root, then run the same command again"
                error = UsageError(error.strerror or str(error), remedy, error.filename)
            failures.append(error)
            if len(names) > 1:
                print(f"{name}: {failures[-1]}")

    waiting: list[Preparation] = []
    images, downloads = 0, [0]
    for name in names:
        source = find(name)
        preparation = Preparation(source, args.root, args.from_dir, args.mirror)
        with collected(name):
            if not source.files:
                print(f"{name}: nothing to prepare")
            elif preparation.is_ready() and not preparation.work.exists():
                print(f"{source.name}: ready")
            else:
                unpacked, download = preparation.space()
                images, downloads = images + unpacked, [*downloads, download]
                waiting.append(preparation)
    check_space(images + max(downloads), args.root)
    for preparation in waiting:
        name = preparation.source.name
        with collected(name):
            preparation.run()
            print(f"{name}: ready: {describe(preparation.source.read_quietly(args.root))}")
    if len(names) == 1 and failures:
        raise failures[0]
    if failures:
        raise UsageError(f"{len(failures)} of {len(names)} datasets could not be prepared", "see above")


def check_space(need: int, root: Path) -> None:
    """Check that the disk has so many bytes for the images, and for the largest archive while it is unpacked."""
    place = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if need and need + RESERVE > free:
        what = f"{need / 1e9:.1f} GB are needed in {place}, {free / 1e9:.1f} GB are free"
        raise UsageError(what, "free some space, or choose another --root")


def show_list(names: list[str], args: argparse.Namespace) -> None:
    """Print a line per dataset."""
    for name in names:
        source = find(name)
        preparation, dataset, terms = Preparation(source, args.root), source.dataset, "nothing to download"
        state = "ready" if preparation.is_ready() else "incomplete" if preparation.folder.is_dir() else "not there"
        if source.files:
            how = "manually" if dataset.by_hand else "downloaded"
            size = sum(file.size for file in source.files if file.link or dataset.by_hand) / 1e9
            terms = f"{size:6.1f} GB, {how}; {dataset.licence} ({dataset.page})"
        print(f"{name:16} {state:10} {terms}")


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
        lines, good = inspect(find(name), args.root, not args.quick)
        print("\n".join(lines))
        failed += not good
    if failed:
        raise UsageError(f"{failed} of {len(names)} datasets are incomplete or wrong", "see above")


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    every = "all" in args.names[:1] or (not args.names and (args.list or args.check))
    names = list(dict.fromkeys(downloadable() if every else args.names))
    if not names:
        raise UsageError("no dataset is given", "python tools/prepare.py --list shows their names")
    if names[0] == "fewshot":
        show_fewshot(names[1:], args)
    else:
        (show_list if args.list else check if args.check else prepare)(names, args)
