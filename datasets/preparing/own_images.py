"""The user's own images: what a run would read in a folder, with all faults at once; and a split
with more images.
"""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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

from .. import copies
from ..base import same_names
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
        now = {item.impath for items in parts.values() for item in items}
        new = {
            part: sum(item.impath not in places for item in items) for part, items in parts.items()
        }
        write_bytes(file, folder.written(parts))
        counts = ", ".join(f"{number:,} {part}" for part, number in new.items())
        print(
            f"{file}: {sum(new.values()):,} images are new ({counts}), "
            f"{len(places.keys() - now):,} are gone"
        )
    print("Finished runs keep their results: train again with another output folder (scripts: OUT)")


@dataclass(frozen=True)
class Content:
    """The content of a folder."""

    faults: list[str]  # a line for each, all of them
    train: int  # how many images a run would train on
    test: int  # how many it would test
    names: list[str]  # of the classes


def check_folder(root: Path, read: bool = True) -> Content:
    """Print the images of each class in a folder, and the class names as CLIP reads them.

    Args:
        root: it has train/CLASS and test/CLASS, and perhaps val/CLASS; or CLASS folders.
        read: decode every image.

    Raises UsageError if there are no class folders.
    """
    folder = OwnImages(root)
    parts = {part: folder.root / part for part in PARTS if (folder.root / part).is_dir()}
    if {"train", "test"} <= {*parts}:
        folder.name_others(folder.class_folders(folder.root), parts)
    else:
        parts = {WHOLE: folder.root}
        folder.check_classes(folder.class_folders(folder.root))
    files: dict[str, dict[str, list[str]]] = {part: {} for part in parts}
    for part, path in parts.items():
        files[part] = {name: files_below(path / name) for name in folder.class_folders(path)}
    classes = sorted({name for by_class in files.values() for name in by_class})
    images: dict[str, dict[str, list[str]]] = {}
    for part, by_class in files.items():
        images[part] = {name: sorted(filter(is_image, by_class.get(name, []))) for name in classes}
    names, faults = names_of(folder, classes)
    print(f"{printable(root)}: {', '.join(parts)}")
    for name in classes:
        counts = ", ".join(f"{len(of[name]):,} {part}" for part, of in images.items())
        print(
            f"  {printable(name)}: {counts}; CLIP reads {printable(as_clip_reads(names[name]))!r}"
        )
    faults += few_images(images, classes)
    paths = [
        f"{parts[part]}/{name}/{file}"
        for part, of in images.items()
        for name in of
        for file in of[name]
    ]
    if read:
        labels = [classes.index(name) for of in images.values() for name in of for _ in of[name]]
        faults += faults_of_pixels(folder, paths, labels, split=WHOLE not in parts)
    for file in folder.saved_splits.values():
        faults += faults_of_split(folder, file, {*paths})
    others = [
        f"{name}/{file}"
        for of in files.values()
        for name in of
        for file in of[name]
        if not is_image(file)
    ]
    if others:
        print(f"  not read: {listed(others)}")
    sizes = {part: sum(map(len, of.values())) for part, of in images.items()}
    whole = sizes.get(WHOLE, 0)
    tested = sizes.get("test", (3 * whole + 9) // 10)
    return Content(
        faults, sizes.get("train", whole - tested - whole // 5), tested, list(names.values())
    )


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


def few_images(images: dict[str, dict[str, list[str]]], classes: Sequence[str]) -> list[str]:
    empty = [name for name in classes if not any(of[name] for of in images.values())]
    learned, least = (images[WHOLE], 2) if WHOLE in images else (images["train"], 1)
    few = [name for name in classes if name not in empty and len(learned[name]) < least]
    what = (
        "only one image, and a split needs two"
        if least == 2
        else "images for val or test, and none for train"
    )
    faults = [f"classes without an image: {listed(empty)}"] if empty else []
    return faults + ([f"classes with {what}: {listed(few)}"] if few else [])


def faults_of_pixels(
    folder: OwnImages, paths: list[str], labels: list[int], split: bool
) -> list[str]:
    """Images that cannot be read, and those with the same pixels: in several parts or classes, or
    before a split.

    Of a split also near-copies in several parts.
    """
    unreadable: list[str] = []
    equal = defaultdict[bytes, list[str]](list)
    looks = []
    for path, label, (image, reason) in zip(paths, labels, pixels_of(paths), strict=True):
        name = os.path.relpath(path, folder.root)
        if image is None:
            unreadable.append(f"{name} ({reason})")
            continue
        equal[image.digest].append(name)
        looks.append((name, label, image))
    faults = (
        [f"images that cannot be read ({len(unreadable):,}): {listed(unreadable)}"]
        if unreadable
        else []
    )
    several = [group for group in equal.values() if len(group) > 1]
    if split:  # a part may have an image twice
        several = [group for group in several if len({name.split("/")[0] for name in group}) > 1]
    groups = list(map(" = ".join, several))
    if split and len({label for _, label, _ in looks}) > 1:
        near = near_copies(looks)
        what = "near-copies in several parts, so that a test is of what was learned"
        faults += [f"{what} ({len(near):,}): {listed(near)}"] if near else []
    why = (
        "in several parts"
        if split
        else "more than once, so that a split can train on it and test it"
    )
    return faults + (
        [f"images that are there {why} ({len(groups):,}): {listed(groups)}"] if groups else []
    )


class Look(NamedTuple):
    """The facts of an image that are compared."""

    digest: bytes  # the SHA-256 of its pixels
    signature: NDArray[np.int8]
    colours: NDArray[np.float32]


def near_copies(looks: Sequence[tuple[str, int, Look]]) -> list[str]:
    """Pairs of near-copies in different parts, as text: images by name, with their labels."""
    names, labels, images = zip(*looks, strict=True)
    signatures = np.stack([image.signature for image in images])
    colours = np.stack([image.colours for image in images])
    found = copies.NearCopies.of(signatures, colours, np.array(labels))
    near = []
    for first, second in found.pairs:
        parts = {names[place].split("/")[0] for place in (first, second)}
        if len(parts) > 1 and images[first].digest != images[second].digest:
            near.append(f"{names[first]} ~ {names[second]}")
    return near


def pixels_of(
    paths: Sequence[str], max_pixels: int | None = None
) -> Iterator[tuple[Look | None, str]]:
    """For each image what is compared of it; or None, and why it cannot be read.

    `max_pixels` is the limit of `read_image`.
    """

    def read(path: str) -> tuple[Look | None, str]:
        try:
            image = read_image(path, max_pixels)
        except OSError as error:
            reason = str(error).replace(repr(path), "it").replace("the image it", "it")
            return None, reason if os.path.exists(path) else "it is a link to a file that is gone"
        digest = bytes.fromhex(copies.pixels_sha256(image))
        return Look(digest, copies.signature(image), copies.colours(image)), ""

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
    for what, images in {
        "images are not in it": paths - known,
        "of its images are gone": known - paths,
    }.items():
        if images:
            example = printable(os.path.relpath(min(images), folder.root))
            faults.append(f"{file.name}: {len(images):,} {what}, such as {example}: {remedy}")
    return faults
