"""The user's own images: what a run would read in a folder, with all faults at once; and a split
with more images.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
from dassl.utils import read_image
from numpy.typing import NDArray
from tqdm import tqdm

from common.errors import UsageError, one_line
from common.files import write_bytes
from common.names import as_clip_reads, check_known_names, plain, printable
from common.text import read_json

from .. import copies, image_facts
from ..base import Items, same_names
from ..folders import files_below, is_image
from ..image_folder import PARTS, ImageFolder

SHOWN = 10  # images in the line of a fault
WHOLE = "images"  # instead of a part, if the images are not split


class OwnImages(ImageFolder):
    """A folder as `ImageFolder` sees it, without reading a split."""

    def __init__(self, root: Path):
        self.root = self.images = root.absolute()

    @property
    def saved_splits(self) -> dict[int, Path]:
        """By their seeds."""
        files = {
            file.stem.removeprefix("split_seed"): file
            for file in sorted(self.root.glob("split_seed*.json"))
        }
        return {int(seed): file for seed, file in files.items() if seed.isdecimal()}

    def places(self, file: Path) -> dict[str, str]:
        """The part of each image in a saved split, by its absolute path. Raises UsageError if it is
        damaged, or an image is in it twice."""
        try:
            rows = [
                (part, self.read_item(*row))
                for part, rows in read_json(file).items()
                for row in rows
            ]
        except (ValueError, AttributeError, TypeError) as error:
            raise UsageError(
                f"{file} is damaged ({one_line(error)})", "delete it to split the images again"
            ) from None
        part_of = {item.impath: part for part, item in rows}
        if len(part_of) < len(rows):
            raise UsageError(f"{file} has an image twice", "delete it to split the images again")
        return part_of


def add_images(root: Path) -> None:
    """Bring the saved splits of a folder up to date: new images get a part, and the others keep
    theirs. Raises UsageError if there is no saved split, it is damaged, or a class has too few
    images.
    """
    folder = OwnImages(root)
    if not folder.saved_splits:
        raise UsageError(
            f"{root} has no saved split",
            "the first run with DATASET.SPLIT_SEED splits all its images",
        )
    classes = folder.classes(folder.class_folders(folder.root))
    for seed, file in folder.saved_splits.items():
        places = folder.places(file)
        parts = folder.divide(seed, classes, places)
        write_bytes(file, folder.written(parts))
        print(f"{file}: {changes(parts, places)}")
    print("Finished runs keep their results: train again with another output folder (scripts: OUT)")


def changes(parts: dict[str, Items], places: Mapping[str, str]) -> str:
    """How many images of a split are new, and how many of those it had are gone."""
    now = {item.impath for item in chain(*parts.values())}
    new = {part: sum(item.impath not in places for item in items) for part, items in parts.items()}
    counts = ", ".join(f"{number:,} {part}" for part, number in new.items())
    gone = places.keys() - now
    return f"{sum(new.values()):,} images are new ({counts}), {len(gone):,} are gone"


@dataclass(frozen=True)
class FolderContent:
    """The content of a folder."""

    faults: list[str]  # a line for each, all of them
    train: int  # how many images a run would train on
    test: int  # how many it would test
    names: list[str]  # of the classes


def check_folder(root: Path, read: bool = True) -> FolderContent:
    """Print the images of each class in a folder, and the class names as CLIP reads them.

    Args:
        root: it has train/CLASS and test/CLASS, and perhaps val/CLASS; or CLASS folders.
        read: decode every image.

    Raises UsageError if there are no class folders.
    """
    folder = OwnImages(root)
    parts = parts_of(folder)
    classes = sorted({*chain(*map(folder.class_folders, parts.values()))})
    files = list(files_of(folder, parts))
    images = [file for file in files if is_image(file.name)]
    counts = Counter((file.part, file.label) for file in images)
    names, faults = names_of(folder, classes)
    print(f"{printable(root)}: {', '.join(parts)}")
    print_classes(names, counts, parts)
    faults += few_images(counts, parts, classes)
    if read:
        faults += faults_of_pixels(folder, images, split=WHOLE not in parts)
    for split in folder.saved_splits.values():
        faults += faults_of_split(folder, split, {file.path for file in images})
    print_others(files)
    return FolderContent(faults, *sizes_of(images), list(names.values()))


def print_classes(
    names: Mapping[str, str], counts: Mapping[tuple[str, str], int], parts: Collection[str]
) -> None:
    """The images of each class in each part, and its name."""
    for name, text in names.items():
        numbers = ", ".join(f"{counts[part, name]:,} {part}" for part in parts)
        print(f"  {printable(name)}: {numbers}; CLIP reads {printable(as_clip_reads(text))!r}")


def print_others(files: Iterable["ClassFile"]) -> None:
    others = [f"{file.label}/{file.name}" for file in files if not is_image(file.name)]
    if others:
        print(f"  not read: {listed(others)}")


class ClassFile(NamedTuple):
    """A file in the folder of a class."""

    part: str
    label: str  # the name of the class folder
    name: str  # of the file below it
    path: str  # absolute


def parts_of(folder: OwnImages) -> dict[str, Path]:
    """The folders of its parts; the folder itself if its images are not split."""
    parts = {part: folder.root / part for part in PARTS if (folder.root / part).is_dir()}
    if {"train", "test"} <= {*parts}:
        folder.name_others(folder.class_folders(folder.root), parts)
        return parts
    folder.check_classes(folder.class_folders(folder.root))
    return {WHOLE: folder.root}


def files_of(folder: OwnImages, parts: Mapping[str, Path]) -> Iterator[ClassFile]:
    """The files of all classes in the folders of the parts, those of a class by their names."""
    for part, path in parts.items():
        for label in folder.class_folders(path):
            for name in sorted(files_below(path / label)):
                yield ClassFile(part, label, name, f"{path}/{label}/{name}")


def sizes_of(images: Sequence[ClassFile]) -> tuple[int, int]:
    """How many images a run trains on, and how many it tests."""
    counts = Counter(image.part for image in images)
    whole = counts[WHOLE]
    if not whole:
        return counts["train"], counts["test"]
    tested = (3 * whole + 9) // 10
    return whole - tested - whole // 5, tested


def names_of(folder: OwnImages, classes: list[str]) -> tuple[dict[str, str], list[str]]:
    """The class names by folder, and faults of them."""
    names = {name: plain(name) for name in classes}
    faults = []
    try:
        names = {name: text for name, (_, text) in folder.classes(classes).items()}
        check_known_names(list(names.values()), folder.root)
    except UsageError as error:
        faults.append(str(error))
    return names, faults + list(filter(None, [same_names(list(names.values()))]))


def listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - SHOWN:,} more" if len(items) > SHOWN else ""
    return f"{', '.join(printable(item) for item in items[:SHOWN])}{more}"


def few_images(
    counts: Mapping[tuple[str, str], int], parts: Collection[str], classes: Sequence[str]
) -> list[str]:
    """Classes without images, or without enough to learn from; `counts` is by part and class."""
    faults = []
    empty = [name for name in classes if not any(counts[part, name] for part in parts)]
    if empty:
        faults.append(f"classes without an image: {listed(empty)}")
    learned = "train"
    least = 1
    fault = "images for val or test, and none for train"
    if WHOLE in parts:
        learned = WHOLE
        least = 2
        fault = "only one image, and a split needs two"
    few = [name for name in classes if name not in empty and counts[learned, name] < least]
    if few:
        faults.append(f"classes with {fault}: {listed(few)}")
    return faults


def faults_of_pixels(folder: OwnImages, images: Sequence[ClassFile], split: bool) -> list[str]:
    """Images that cannot be read, and those with the same pixels: in several parts or classes, or
    before a split.

    Of a split also near-copies in several parts.
    """
    looks, unreadable = looks_of(folder, images)
    faults = []
    if unreadable:
        fault = "images that cannot be read"
        faults.append(f"{fault} ({len(unreadable):,}): {listed(unreadable)}")
    if split and len({look.label for look in looks}) > 1:
        near = near_copies(looks)
        fault = "near-copies in several parts, so that a test is of what was learned"
        faults += [f"{fault} ({len(near):,}): {listed(near)}"] if near else []
    groups = equal_images(looks, split)
    if groups:
        why = "more than once, so that a split can train on it and test it"
        if split:
            why = "in several parts"
        faults.append(f"images that are there {why} ({len(groups):,}): {listed(groups)}")
    return faults


def looks_of(folder: OwnImages, images: Sequence[ClassFile]) -> tuple[list["NamedLook"], list[str]]:
    """The looks of each image, and the images that cannot be read, with the reason."""
    looks = []
    unreadable = []
    read = pixels_of([image.path for image in images])
    for image, (look, reason) in zip(images, read, strict=True):
        name = os.path.relpath(image.path, folder.root)
        if look is None:
            unreadable.append(f"{name} ({reason})")
        else:
            looks.append(NamedLook(name, image.label, look))
    return looks, unreadable


def equal_images(looks: Sequence["NamedLook"], split: bool) -> list[str]:
    """Images with equal pixels, those of a group in a text; in several parts, after a split."""
    names = defaultdict[bytes, list[str]](list)
    for look in looks:
        names[look.image.digest].append(look.name)
    groups = [group for group in names.values() if len(group) > 1]
    if split:  # a part may have an image twice
        groups = [group for group in groups if len({part_of(name) for name in group}) > 1]
    return list(map(" = ".join, groups))


def part_of(name: str) -> str:
    """The part of an image, by its path in the folder."""
    return name.split("/")[0]


class ComparedFacts(NamedTuple):
    """The facts of an image that are compared."""

    digest: bytes  # the SHA-256 of its pixels
    signature: NDArray[np.int8]
    colours: NDArray[np.float32]


class NamedLook(NamedTuple):
    name: str  # of the image, in the folder
    label: str
    image: ComparedFacts


def near_copies(looks: Sequence[NamedLook]) -> list[str]:
    """Pairs of near-copies in different parts, as text."""
    signatures = np.stack([look.image.signature for look in looks])
    colours = np.stack([look.image.colours for look in looks])
    _, labels = np.unique([look.label for look in looks], return_inverse=True)
    near = []
    for pair in copies.NearCopies.of(signatures, colours, labels).pairs:
        one, other = (looks[place] for place in pair)
        if part_of(one.name) != part_of(other.name) and one.image.digest != other.image.digest:
            near.append(f"{one.name} ~ {other.name}")
    return near


def pixels_of(
    paths: Sequence[str], max_pixels: int | None = None
) -> Iterator[tuple[ComparedFacts | None, str]]:
    """For each image what is compared of it; or None, and why it cannot be read.

    `max_pixels` is the limit of `read_image`.
    """

    def read(path: str) -> tuple[ComparedFacts | None, str]:
        try:
            image = read_image(path, max_pixels)
        except OSError as error:
            reason = str(error).replace(repr(path), "it").replace("the image it", "it")
            return None, reason if os.path.exists(path) else "it is a link to a file that is gone"
        digest = bytes.fromhex(image_facts.pixels_sha256(image))
        return ComparedFacts(digest, image_facts.signature(image), image_facts.colours(image)), ""

    with ThreadPool(min(8, len(os.sched_getaffinity(0)))) as pool:
        yield from tqdm(
            pool.imap(read, paths, chunksize=4), total=len(paths), desc="reading", disable=None
        )


def faults_of_split(folder: OwnImages, file: Path, paths: set[str]) -> list[str]:
    """How a saved split differs from the images that are there."""
    try:
        known = {*folder.places(file)}
    except UsageError as error:
        return [str(error)]
    remedy = f"python tools/prepare.py --add {folder.root} brings it up to date"
    faults = []
    for fault, images in {
        "images are not in it": paths - known,
        "of its images are gone": known - paths,
    }.items():
        if images:
            example = printable(os.path.relpath(min(images), folder.root))
            faults.append(f"{file.name}: {len(images):,} {fault}, such as {example}: {remedy}")
    return faults
