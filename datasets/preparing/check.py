"""What is there of a dataset, compared with its split and with what is published of it."""

import os
from collections.abc import Iterable
from multiprocessing.pool import ThreadPool
from pathlib import Path

from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from ..base import DatasetError, FewShotDataset
from .arrange import WORK, Preparation
from .sources import Source, missing_images, named_images, read_quietly, reason, split_images


def check(source: Source, root: Path, read: bool = True) -> bool:
    """Print what is wrong with a dataset under a root, and the command that mends it.

    Args:
        source: the dataset.
        root: folder of the datasets.
        read: decode every image, not only look whether it is there.

    Returns:
        Whether nothing is.
    """
    command = source.command(root)
    print(f"{source.name} in {source.folder(root)}")
    try:
        dataset = read_quietly(source, root)
    except DatasetError as error:
        print(f"  {reason(error)}\n  -> {Preparation(source, root).way_out()}" if source.files else f"  {error}")
        return False
    missing = missing_images(dataset)
    there = sorted(set(split_images(dataset)) - set(missing))
    broken = unreadable(dataset.root, there) if read else []
    wrong = differences(dataset)
    print(f"  {describe(dataset)}{'' if wrong else ', as published' if dataset.counts else ''}")
    for what, there_are, published in wrong:
        print(f"  {there_are:,} {what} instead of {published:,}")
    for kind, names in (("missing", missing), ("unreadable", broken)):
        if names:
            print(f"  {len(names)} images are {kind}, the first {dataset.root / names[0]}")
    extra = sorted(images_below(dataset.images, dataset.root) - set(there))
    if extra:
        print(f"  {len(extra)} images that its split does not name, the first {dataset.root / extra[0]} (harmless)")
    if not source.files and (missing or broken):
        print(f"  -> put good ones in their place, or {dataset.remedy}")
    elif missing and not (broken or wrong):
        print(f"  -> {Preparation(source, root).way_out()}")
    elif wrong and dataset.split_id:
        print(f"  -> move {dataset.root / dataset.split_file} elsewhere, then: {command}")
    elif any(dataset.split_file or there_are > published for _, there_are, published in wrong):
        print(f"  -> move {dataset.root} elsewhere, then: {command}")  # nothing that is there is overwritten or removed
    elif broken or wrong:
        print(f"  -> {command} --repair")
    else:
        print("  nothing is wrong" if read else "  nothing is missing (without --quick, every image is read as well)")
    return not (missing or broken or wrong)


def describe(dataset: FewShotDataset) -> str:
    counts = [f"{len(items):,} images for {part}" for part, items in named_images(dataset).items() if items]
    return f"{', '.join(counts)}, {dataset.num_classes:,} classes"


def differences(dataset: FewShotDataset) -> list[tuple[str, int, int]]:
    """Which counts differ from the published ones: of what, how many are there, and how many should be."""
    parts = named_images(dataset)
    counts = [(f"images for {part}", len(parts[part]), n) for part, n in zip(parts, dataset.counts or (), strict=False)]
    counts += [("classes", dataset.num_classes, dataset.n_classes or dataset.num_classes)]
    return [(what, there, published) for what, there, published in counts if there != published]


def images_below(folder: Path, root: Path) -> set[str]:
    """Paths of the image files in a folder and below, relative to `root`."""
    found = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name != WORK]
        below = os.path.relpath(parent, root)
        found.update(
            os.path.normpath(f"{below}/{name}")
            for name in names
            if name.lower().endswith(IMG_EXTENSIONS) and not name.startswith(".")
        )
    return found


def unreadable(root: Path, names: Iterable[str]) -> list[str]:
    """Those of the images, relative to a folder, that can't be decoded to their end."""
    names = list(names)
    with ThreadPool(min(8, len(os.sched_getaffinity(0)))) as pool:
        read = pool.imap(lambda name: can_be_read(root / name), names, chunksize=16)
        return [
            name for name, good in zip(names, tqdm(read, total=len(names), desc="reading"), strict=True) if not good
        ]


def can_be_read(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.draft("RGB", (32, 32))  # a JPEG is read whole, but need not be computed in full
            image.load()
    except Exception:  # whatever a decoder makes of garbage
        return False
    return True
