"""Answers for many images in shards of 10,000, which are skipped when they are finished."""

import os
import re
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from common.errors import UsageError
from common.files import PARTIAL, checksum, write_json
from common.lock import LOCK, is_locked, locked
from common.names import printable
from common.text import read_json
from common.version import source

from .bank import COUNT, MADE, Bank, BankFiles, facts_of_tower, is_bank
from .formats import as_unicode
from .options import LoadOptions
from .ray_workers import written
from .shard_files import Output, Shard, opened, parts_of, remove_partial, write_shard
from .sources import images_in
from .tars import expanded, is_tar, members_in

if TYPE_CHECKING:
    from .classifier import PromptedClassifier

SHARD = 10_000  # images
DIGITS = 5 * "[0-9]"  # in the name of a shard


class Share(NamedTuple):
    """The shards that one of several machines writes: the `number`-th, from 1, of each `of`."""

    number: int
    of: int

    def has(self, shard: int) -> bool:
        return shard % self.of == self.number - 1


WHOLE = Share(1, 1)


def share(text: str) -> Share:
    """The argparse type of a share, such as 3/16."""
    found = re.fullmatch(r"([1-9]\d{0,4})/([1-9]\d{0,4})", text)
    if not found or int(found[1]) > int(found[2]):
        raise ArgumentTypeError(f"expected 1/16 to 16/16 for 16 machines, got {text!r}")
    return Share(int(found[1]), int(found[2]))


def add_shard_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    text = "the files of one of several machines, such as 3/16; all have the same images and --to"
    again = "replace the files of other images, of another model or with other options"
    add("--replace", action="store_true", help=again)
    add("--shard", type=share, default=WHOLE, metavar="K/N", help=text)
    text = "write the files by workers of a Ray cluster, whose machines share all folders"
    add("--engine", choices=("ray",), help=text)
    add("--address", metavar="HOST:PORT", help="of the cluster (default: one on this machine)")


def shards_in(paths: Sequence[Any]) -> Iterator[Shard]:
    """The images of `images_in`, 10,000 at a time, then one shard for each tar and each file of a
    bank.
    """
    places = [place for path in paths for place in expanded(path)]
    images = images_in([place for place in places if not (is_tar(place) or is_bank(place))])
    while files := list(islice(images, SHARD)):
        yield Shard(files)
    for place in filter(is_tar, places):
        yield Shard([place], members_in)
    for place in filter(is_bank, places):
        for file in Bank(place).files:
            yield Shard([file], rows_in)


def rows_in(file: Path) -> BankFiles:
    return BankFiles([file])


def write_shards(
    output: Output, paths: Sequence[Any], args: Namespace, words: Sequence[str] | None
) -> int:
    """Write the shards of a share, but those that are finished and whose images are the same.

    Args:
        args, words: of the command; `args` are what `add_shard_options` reads from the words.

    Returns how many images of the share have an error.

    Raises:
        UsageError: there are no images, the folder has other files or shards of other facts, or
            another command writes this share.
    """
    from tqdm import tqdm

    part = args.shard
    shards = shards_in(paths)
    first = next(shards, None)
    if not first:
        raise UsageError("there are no images", "give another folder, or files")
    with (
        only_one(output, part, args.replace),
        tqdm(desc=output.content, unit="image", disable=None, postfix="errors=0") as bar,
    ):
        if not args.replace:
            check_same_images(output, first)
        output.bar = bar
        if not bar.disable:
            bar.total = total_of(shards_in(paths), part)
        number = write_each(output, chain([first], shards), args, words)
        remove_from(output, number, part)
        # Those of other shares are perhaps not finished
        facts = output.facts | {COUNT: number, MADE: source()}
        with nullcontext() if part == WHOLE else locked(output.folder, wait=True, option="--to"):
            write_json(output.record, facts)
    return output.errors


def write_each(
    output: Output, shards: Iterator[Shard], args: Namespace, words: Sequence[str] | None
) -> int:
    """Write the shards of a share, in the processes of an engine if the command has one; returns
    how many shards there are.
    """
    number = 0

    def own() -> Iterator[tuple[int, Shard]]:
        nonlocal number
        for shard in shards:
            number += 1
            if args.shard.has(number - 1):
                yield number - 1, shard

    if args.engine:
        for images, errors in written(output, words, own(), args.address):
            output.advance(images, errors)
    else:
        for place, shard in own():
            write_shard(output, place, shard)
    return number


def total_of(shards: Iterator[Shard], part: Share) -> int:
    """How many images a share has; those in tars are found by their headers."""
    of_part = (shard for number, shard in enumerate(shards) if part.has(number))
    return sum(len(shard.images()) for shard in of_part)


@contextmanager
def only_one(output: Output, part: Share, replace: bool) -> Iterator[None]:
    """Keep other commands out of the share of a folder, whose facts are checked."""
    folder = output.folder
    if part == WHOLE:
        with locked(folder, option="--to"):
            check_split(folder, part)
            check_same(output, replace)
            yield
        return
    with ExitStack() as own:
        # The commands of all shares check the folder, one after another
        with locked(folder, wait=True, option="--to"):
            check_split(folder, part)
            name = f"{LOCK}-{part.number}-of-{part.of}"
            own.enter_context(locked(folder, option="--to", name=name))
            check_same(output, replace)
        yield


def check_split(folder: Path, part: Share) -> None:
    """Raise UsageError if a command with other shares is running: both would have some shards."""
    for lock in folder.glob(f"{LOCK}-*-of-*"):
        if not lock.name.endswith(f"-of-{part.of}") and is_locked(folder, lock.name):
            other = lock.name.removeprefix(f"{LOCK}-").replace("-of-", "/")
            fault = f"{folder} is being written with --shard {other}"
            raise UsageError(fault, "wait until it has ended, or split in the same way", folder)


def check_same(output: Output, replace: bool) -> None:
    """Raise UsageError if a folder has other files, or shards that depend on other facts, unless
    these are replaced: then they are deleted.
    """
    folder = output.folder
    record = output.record
    remedy = "choose another folder, or delete it"
    if record.is_file():
        known = read_json(record)
        if isinstance(known, dict):
            known = {key: value for key, value in known.items() if key not in (COUNT, MADE)}
        if known == output.facts:
            remove_partial(record)
            return
        if not replace:
            fault = (
                f"{folder} has {output.content} of another model, other options or another layout"
            )
            raise UsageError(fault, f"{remedy}; or add --replace", folder)
        delete_shards(output)
    else:
        names = [name for name in os.listdir(folder) if not re.fullmatch(PARTIAL, name)]
        if any(not name.startswith(LOCK) for name in names):
            raise UsageError(f"{folder} is not empty", remedy, folder)
    write_json(record, output.facts | {MADE: source()})
    remove_partial(record)


def delete_shards(output: Output) -> None:
    """Delete the shards in a folder, of any layout."""
    for pattern in (f"{DIGITS}.parquet", f"img_emb/*_{DIGITS}.npy", f"metadata/*_{DIGITS}.parquet"):
        for file in output.folder.glob(pattern):
            file.unlink()


def check_same_images(output: Output, shard: Shard) -> None:
    """Raise UsageError if the first shard in a folder has none of the images of a shard."""
    file = output.files(0)[-1]
    try:
        with opened(file) as table:
            column = table.schema_arrow.names[0]
            known = {
                name for part in parts_of(table, [column]) for name in part[column].to_pylist()
            }
    except UsageError:  # there is none, or it is damaged
        return
    names = (as_unicode(str(image)) for image in shard.images())
    if known and known.isdisjoint(names):
        fault = (
            f"{output.folder} has {output.content} of other images, such as {printable(min(known))}"
        )
        raise UsageError(fault, "choose another folder, or add --replace", output.folder)


def remove_from(output: Output, number: int, part: Share) -> None:
    """Delete the shards of this number and later, which an earlier call with more images wrote."""
    while files := [file for file in output.files(number) if file.is_file()]:
        if part.has(number):
            for file in files:
                file.unlink()
        number += 1


def end(folder: Path, errors: int) -> None:
    """Say what a command wrote; the exit status is 1 if images have an error."""
    print(f"Written: {folder}")
    if errors:
        count = "1 image" if errors == 1 else f"{errors:,} images"
        print(f"{count} could not be read: see the column error", file=sys.stderr)
        sys.exit(1)


def facts_of(
    classifier: "PromptedClassifier", model: Path | None, options: LoadOptions
) -> dict[str, Any]:
    """The facts that features and logits of a model depend on, without class names."""
    from .load import model_file

    facts = {"form": 1, "method": classifier.method, **facts_of_tower(classifier)}
    if model:
        kind = type(classifier._own)
        facts["model_sha256"] = checksum(model_file(model, kind, options.epoch))
    return facts
