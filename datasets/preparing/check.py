"""Compare a dataset on the disk with its split and its published counts."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

from dassl.utils import read_image
from tqdm import tqdm

from common.errors import UsageError

from ..base import DatasetError, FewShotDataset
from ..folders import IMG_EXTENSIONS
from .arrange import WORK, Preparation
from .sources import Source, image_paths, images_by_split, missing_images


class Difference(NamedTuple):
    """A count that differs from the published one."""

    what: str
    found: int
    published: int


@dataclass
class Findings:
    """The state of a dataset. Paths of images are relative to its folder.

    Attributes:
        error: why its split cannot be read; then there is no `dataset`, and nothing else is known.
        missing: images of the split that do not exist.
        unreadable: images that cannot be decoded; None if they were not read.
        extra: images that are not in the split, which is harmless.
        differences: counts that differ from the published ones.
    """

    source: Source
    root: Path
    error: DatasetError | None = None
    dataset: FewShotDataset | None = None
    missing: list[str] = field(default_factory=list)
    unreadable: list[str] | None = None
    extra: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not (self.error or self.missing or self.unreadable or self.differences)

    def suggestion(self) -> str:
        """How to fix it: the command to run, and any step before it. Empty if nothing is wrong."""
        if self.ok:
            return ""
        if not self.source.files:
            remedy = self.error.remedy if self.error else getattr(self.dataset, "remedy", "")
            return remedy if self.error else f"replace these images, or {remedy}"
        if self.error or not (self.unreadable or self.differences):
            return Preparation(self.source, self.root).suggestion()
        folder, split = self.source.folder(self.root.absolute()), self.source.dataset.split_file
        command = self.source.command(self.root)
        if self.differences and any(file.name == split for file in self.source.files):
            return f"move {folder / split} elsewhere, then: {command}"
        if any(split or found > published for _, found, published in self.differences):
            return f"move {folder} elsewhere, then: {command}"  # existing files are never overwritten or deleted
        return f"{command} --repair"


def inspect(source: Source, root: Path, read: bool = True) -> Findings:
    """Compare a dataset with its split.

    Args:
        source: the dataset.
        root: folder of the datasets.
        read: decode every image, instead of only checking that it exists.
    """
    try:
        dataset = source.read_quietly(root)
    except DatasetError as error:
        return Findings(source, root, error)
    missing = missing_images(dataset)
    existing = sorted(set(image_paths(dataset)) - set(missing))
    return Findings(
        source,
        root,
        dataset=dataset,
        missing=missing,
        unreadable=unreadable_images(dataset, existing) if read else None,
        extra=sorted(images_below(dataset.images, dataset.root) - set(existing)),
        differences=differences(dataset),
    )


def report(findings: Findings) -> list[str]:
    """The findings as lines, then `-> what to do`."""
    source, dataset = findings.source, findings.dataset
    lines = [f"{source.name} in {source.folder(findings.root)}"]
    if findings.error:
        lines += [f"  {UsageError(findings.error.what, where=findings.error.where)}"]
    if dataset:
        published = ", as published" if dataset.counts and not findings.differences else ""
        lines += [f"  {describe(dataset)}{published}"]
        lines += [f"  {found:,} {what} instead of {published:,}" for what, found, published in findings.differences]
        for what, names in (
            ("are missing", findings.missing),
            ("are unreadable", findings.unreadable or []),
            ("are not in its split (harmless)", findings.extra),
        ):
            lines += [f"  {len(names)} images {what}, the first {dataset.root / names[0]}"] if names else []
    if not findings.ok:
        lines += [f"  -> {findings.suggestion()}"]
    elif findings.unreadable is None:
        lines += ["  nothing is missing (without --quick, every image is read as well)"]
    else:
        lines += ["  nothing is wrong"]
    return lines


def describe(dataset: FewShotDataset) -> str:
    counts = [f"{len(items):,} images for {part}" for part, items in images_by_split(dataset).items() if items]
    return f"{', '.join(counts)}, {dataset.num_classes:,} classes"


def differences(dataset: FewShotDataset) -> list[Difference]:
    counts = {f"images for {part}": len(items) for part, items in images_by_split(dataset).items()}
    compared = [
        Difference(what, counts[what], published) for what, published in zip(counts, dataset.counts or (), strict=False)
    ]
    compared += [Difference("classes", dataset.num_classes, dataset.n_classes or dataset.num_classes)]
    return [difference for difference in compared if difference.found != difference.published]


def images_below(folder: Path, root: Path) -> set[str]:
    """Paths of the image files in a folder and its subfolders, relative to `root`."""
    found = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name != WORK]
        below = os.path.relpath(parent, root)
        for name in names:
            if name.lower().endswith(IMG_EXTENSIONS) and not name.startswith("."):
                found.add(os.path.normpath(f"{below}/{name}"))
    return found


def unreadable_images(dataset: FewShotDataset, names: Iterable[str]) -> list[str]:
    """Those of the images, relative to the dataset's folder, that a run cannot read."""

    def can_be_read(name: str) -> bool:
        try:
            read_image(str(dataset.root / name), dataset.cfg.INPUT.MAX_PIXELS)
        except OSError:
            return False
        return True

    names = list(names)
    with ThreadPool(min(8, len(os.sched_getaffinity(0)))) as pool:
        progress = tqdm(pool.imap(can_be_read, names, chunksize=16), total=len(names), desc="reading")
        return [name for name, good in zip(names, progress, strict=True) if not good]
