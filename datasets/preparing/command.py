"""Get the datasets and put them where everything here, and CoOp, looks for them.

    python tools/prepare.py eurosat dtd --root data          # download, verify, unpack, arrange what is missing
    python tools/prepare.py --list --root data               # every dataset, its size, its terms, whether it is there
    python tools/prepare.py --check eurosat --root data      # compare what is there with the split; read every image
    python tools/prepare.py fewshot eurosat --root data --seed 1 --shots 16    # the images that a run would choose

What was interrupted goes on where it was when the same command is given again. Files that can't be downloaded (from
where you are) may be put into the dataset's folder under the same name, or into a folder given by --from.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

from common.errors import UsageError
from common.start import add_common_options

from ..base import DatasetError
from .arrange import Preparation
from .check import check, describe, unreadable
from .sources import Source, find, read_quietly, split_images, table

RESERVE = 1 << 30  # bytes of the disk that are left free


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )
    parser.add_argument(
        "names", nargs="*", metavar="DATASET", help="names of configs/datasets, or all; or: fewshot DATASET"
    )
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the datasets (default: data)")
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("--check", action="store_true", help="say what is wrong with what is there; change nothing")
    parser.add_argument("--quick", action="store_true", help="with --check: do not read the images")
    parser.add_argument(
        "--repair", action="store_true", help="unpack again: add missing images, replace unreadable ones"
    )
    parser.add_argument(
        "--from", type=Path, dest="given", metavar="FOLDER", help="where files are that you got by hand"
    )
    parser.add_argument(
        "--mirror",
        default=os.environ.get("PREPARE_MIRROR", ""),
        metavar="URL",
        help="get every file from URL/DATASET/FILE (default: the environment's PREPARE_MIRROR)",
    )
    parser.add_argument("--seed", type=int, default=1, help="with fewshot: the run's seed (1)")
    parser.add_argument("--shots", type=int, default=16, help="with fewshot: images a class (16)")
    parser.add_argument(
        "--classes", choices=("all", "base", "new"), default="all", help="with fewshot: of which classes"
    )
    add_common_options(parser)
    args = parser.parse_intermixed_args(argv)
    args.root = Path(os.path.expanduser(args.root))
    if args.given and not args.given.is_dir():
        raise UsageError(f"no folder {args.given}: --from names the one with the files that you got by hand")
    return args


def prepare(names: list[str], args: argparse.Namespace) -> None:
    """Prepare datasets one after the other; one that fails does not keep the others from being prepared.

    Whether the disk has room for all of them is looked at first.
    """
    failures = []

    def attempt(name: str, step: Callable[[], None]) -> bool:
        try:
            step()
        except (UsageError, OSError) as error:
            failures.append(refusal(error))
            if len(names) > 1:
                print(f"{name}: {failures[-1]}")
            return False
        return True

    waiting, sizes = [], []

    def begin(source: Source) -> None:
        broken = find_broken(source, args.root) if args.repair else []
        preparation = Preparation(source, args.root, args.given, args.mirror, args.repair, broken)
        if preparation.ready and not preparation.work.exists():
            print(f"{source.name}: ready")
        else:
            sizes.append(preparation.space())
            waiting.append(preparation)

    for name in names:
        source = find(name)
        if source.files:
            attempt(name, lambda source=source: begin(source))
        else:
            print(f"{name}: nothing to prepare")
    check_space(sizes, args.root)
    for preparation in waiting:
        name = preparation.source.name
        if attempt(name, preparation.run):
            print(f"{name}: ready: {describe(read_quietly(preparation.source, args.root))}")
    if failures:
        several = UsageError(f"{len(failures)} of {len(names)} datasets could not be prepared: see above")
        raise failures[0] if len(names) == 1 else several


def refusal(error: UsageError | OSError) -> UsageError:
    """A full disk, or a folder that can't be read or written to, in words that say what to do."""
    if isinstance(error, UsageError):
        return error
    place = f": {error.filename}" if error.filename else ""
    return UsageError(
        f"{error.strerror or error}{place}: see to it or choose another --root, then give the same command again"
    )


def find_broken(source: Source, root: Path) -> list[str]:
    """Images that are there and can't be read."""
    try:
        dataset = read_quietly(source, root)
    except DatasetError:
        return []
    return unreadable(dataset.root, [name for name in split_images(dataset) if (dataset.root / name).is_file()])


def check_space(sizes: list[tuple[int, int]], root: Path) -> None:
    """Refuse to begin what the disk has no room for: images that stay, and the largest archive while it is unpacked."""
    need = sum(stays for stays, _ in sizes) + max((goes for _, goes in sizes), default=0)
    place = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if need and need + RESERVE > free:
        raise UsageError(
            f"{need / 1e9:.1f} GB are needed in {place}, {free / 1e9:.1f} GB are free: "
            "make room, or choose another --root"
        )


def show_list(names: list[str], args: argparse.Namespace) -> None:
    """A line for each dataset, then a command for the first that is not there, and for the first that is incomplete."""
    first = {}
    for name in names:
        source = find(name)
        state = Preparation(source, args.root, args.given)
        how = "by hand" if source.by_hand else "downloaded"
        there = "ready" if state.ready else "not there" if not state.folder.is_dir() else "incomplete"
        terms = f"{source.size / 1e9:6.1f} GB, {how}; {source.licence} ({source.page})"
        print(f"{name:16} {there:10} {terms if source.files else 'nothing to download'}")
        if source.files:
            first.setdefault(there, source.command(args.root))
    print(f"under {args.root}")
    if "not there" in first:
        print(f"to get one: {first['not there']}")
    if "incomplete" in first:
        print(f"to see what one lacks: {first['incomplete']} --check")


def show_fewshot(names: list[str], args: argparse.Namespace) -> None:
    """Print the images that a run trains and validates on, in its order, relative to the folder of images."""
    if len(names) != 1:
        raise UsageError("say of which dataset: python tools/prepare.py fewshot DATASET --seed 1 --shots 16")
    if args.seed < 0:
        raise UsageError(f"--seed {args.seed} chooses other images every time: give the run's, from 0")
    source, options = find(names[0]), ["DATASET.NUM_SHOTS", str(args.shots), "DATASET.SUBSAMPLE_CLASSES", args.classes]
    if source.dataset.test_only:
        raise UsageError(f"{source.name} has test images only: nothing is learned on it, so none are chosen")
    with redirect_stdout(sys.stderr):
        dataset = source.read(args.root, *options, seed=args.seed)
    for part, items in (("train", dataset.train_x), ("val", dataset.val or [])):
        for item in items:
            print(part, os.path.relpath(item.impath, dataset.images))


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    names = list(table()) if args.names == ["all"] or not args.names and (args.list or args.check) else args.names
    names = list(dict.fromkeys(names))
    if not names:
        raise UsageError("say which dataset: python tools/prepare.py --list shows them")
    try:
        if names[0] == "fewshot":
            show_fewshot(names[1:], args)
        elif args.list:
            show_list(names, args)
        elif args.check:
            check_all(names, args)
        else:
            prepare(names, args)
        sys.stdout.flush()
    except BrokenPipeError:  # `head` has seen enough; Python would flush once more at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        raise refusal(error) from None


def check_all(names: list[str], args: argparse.Namespace) -> None:
    sound = [check(find(name), args.root, not args.quick) for name in names]
    if not all(sound):
        raise UsageError(f"{sound.count(False)} of {len(names)} datasets not as they should be: see above")
