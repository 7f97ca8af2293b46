"""Compare a dataset on the disk with its split and its published counts."""

import os
from collections.abc import Iterable
from multiprocessing.pool import ThreadPool
from pathlib import Path

from dassl.utils import read_image
from tqdm import tqdm

from common.errors import UsageError

from ..base import DatasetError, FewShotDataset, missing_files
from .arrange import Preparation
from .sources import Source, image_paths, images_by_split


def inspect(source: Source, root: Path, read: bool = True) -> tuple[list[str], bool]:
    """Compare a dataset with its split.

    Args:
        source: the dataset.
        root: folder of the datasets.
        read: decode every image, instead of only checking that it exists.

    Returns:
        Lines with what was found, and whether all is well. If not, the last line is `-> what to do`.
    """
    lines, command, folder = [f"{source.name} in {source.folder(root)}"], source.command(root), source.folder(root)
    try:
        dataset = source.read_quietly(root)
    except DatasetError as error:
        remedy = Preparation(source, root).with_command(error).remedy if source.files else error.remedy
        return [*lines, f"  {UsageError(error.what, where=error.where)}", f"  -> {remedy}"], False
    wrong = [
        f"  {here:,} {what} instead of {published:,}"
        for what, here, published in counts(dataset)
        if published not in (None, here)
    ]
    paths = image_paths(dataset)
    missing = missing_files(paths)
    unreadable = unreadable_images(dataset, set(paths).difference(missing)) if read else []
    lines += [f"  {describe(dataset)}{', as published' if dataset.counts and not wrong else ''}", *wrong]
    for images, fault in ((missing, "missing"), (unreadable, "unreadable")):
        lines += [f"  {len(images)} images are {fault}, the first {images[0]}"] if images else []
    if not (missing or unreadable or wrong):
        return [*lines, "  nothing is wrong" if read else "  nothing is missing (--quick: no image was read)"], True
    if not source.files:
        command = f"replace these images, or {dataset.remedy}"
    elif unreadable:
        command = f"move {dataset.images} elsewhere, then: {command}"
    elif wrong:
        split = next((file.name for file in source.files if file.name == dataset.split_file), "")
        command = f"move {folder / split} elsewhere, then: {command}"
    return [*lines, f"  -> {command}"], False


def counts(dataset: FewShotDataset) -> list[tuple[str, int, int | None]]:
    """What is counted, its number here, and the published one: images for each part, and classes."""
    published = (*(dataset.counts or (None,) * 3), dataset.n_classes)
    here = {f"images for {part}": len(items) for part, items in images_by_split(dataset).items()}
    here["classes"] = dataset.num_classes
    return [(what, number, expected) for (what, number), expected in zip(here.items(), published, strict=True)]


def describe(dataset: FewShotDataset) -> str:
    return ", ".join(f"{number:,} {what}" for what, number, _ in counts(dataset) if number)


def unreadable_images(dataset: FewShotDataset, paths: Iterable[str]) -> list[str]:
    """The images that a run cannot read, sorted."""

    def can_be_read(path: str) -> bool:
        try:
            read_image(path, dataset.cfg.INPUT.MAX_PIXELS)
        except OSError:
            return False
        return True

    paths = sorted(paths)
    with ThreadPool(min(8, len(os.sched_getaffinity(0)))) as pool:
        progress = tqdm(pool.imap(can_be_read, paths, chunksize=16), total=len(paths), desc="reading")
        return [path for path, good in zip(paths, progress, strict=True) if not good]
