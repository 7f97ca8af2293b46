"""The labelled images of a calibration: those of a run, of class folders, or of a bank."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from dassl.data.datasets import Datum
from numpy.typing import NDArray

from common.errors import UsageError
from common.names import plain, printable

from .bank import Bank, BankFiles, is_bank
from .calibrated_outputs import Outputs
from .classifier import PromptedClassifier
from .head_only import HeadOnly
from .images import find_images
from .seen import SeenImages

COLUMNS = "path", "sha256", "pixels_sha256", "signature"
CALIBRATED = "calibrated"
MOST_LOGITS = 2 * 10**8  # 25 bytes each while a calibration is fitted


class Stored(NamedTuple):
    """An image of a bank.

    Attributes:
        before: (width,), its feature before the projection of the tower.
        pixels_sha256, signature: how it looks; None if the bank does not say it.
    """

    impath: str
    label: int
    classname: str
    sha256: str
    before: NDArray[np.float32]
    pixels_sha256: str | None
    signature: list[int] | None


def labelled_images(
    folder: Path, dataset: Any, images: Path | None, names: Sequence[str]
) -> tuple[Sequence[Any], str]:
    """The images to fit on, and where they are from; UsageError for none."""
    if images and is_bank(images):
        return stored_in(images, names), f"images of the bank {printable(images.name)}"
    if images:
        return items_of(images, names), f"images in {printable(images.name)}"
    if dataset is None or not dataset.val:
        fault = f"{folder} has no validation images"
        raise UsageError(fault, "give labelled images by --images", folder)
    return dataset.val, f"validation images of {dataset.title}"


def items_of(folder: Path, names: Sequence[str]) -> list[Datum]:
    """The images in folders named after the classes. Raises UsageError for none, or a folder with
    another name.
    """
    if not folder.is_dir():
        raise UsageError(
            f"there is no folder {folder}",
            "give one with a folder of images for each class",
            folder,
        )
    items = []
    labels = {name: label for label, name in enumerate(names)}
    for parent in sorted(
        place for place in folder.iterdir() if place.is_dir() and place.name[0] != "."
    ):
        name = plain(parent.name)
        if name not in labels:
            fault = (
                f"{printable(parent)} is named after no class of the model, whose first is "
                f"{names[0]!r}"
            )
            raise UsageError(fault, "give images of the model's classes", folder)
        items += [
            Datum(impath=str(file), label=labels[name], classname=name)
            for file in find_images([parent])
        ]
    if not items:
        raise UsageError(
            f"no folder of images in {folder}", "give one for each class, named after it", folder
        )
    note_missing(items, names)
    return items


def note_missing(items: Sequence[Any], names: Sequence[str]) -> None:
    """Print how many classes have no image."""
    if missing := set(names).difference(item.classname for item in items):
        print(f"No images of {len(missing)} of the {len(names)} classes, such as {min(missing)!r}")


def stored_in(folder: Path, names: Sequence[str]) -> list[Stored]:
    """The images of a bank, whose classes are the folders in their paths. Raises UsageError for
    none, or one in no such folder.
    """
    labels = {name: label for label, name in enumerate(names)}
    items = []
    for row in BankFiles(Bank(folder).files).images(*COLUMNS):
        if row["fault"]:
            continue
        parents = map(plain, reversed(Path(row["path"]).parts[:-1]))
        name = next((parent for parent in parents if parent in labels), None)
        if name is None:
            fault = (
                f"{printable(row['path'])} is in no folder named after a class of the model, "
                f"whose first is {names[0]!r}"
            )
            raise UsageError(fault, "embed images of the model's classes", folder)
        look = row.get("pixels_sha256"), row.get("signature")
        items.append(Stored(row["path"], labels[name], name, row["sha256"], row["before"], *look))
    if not items:
        raise UsageError(f"{folder} has no features", "embed images of each class", folder)
    note_missing(items, names)
    return items


def seen_of(items: Sequence[Any]) -> SeenImages:
    """The images as a calibration sees them; none of a bank that does not say how they look."""
    if not isinstance(items[0], Stored):
        return SeenImages.of_files(items, CALIBRATED)
    known = [item for item in items if item.pixels_sha256]
    digests = [str(item.pixels_sha256) for item in known]
    looks = [item.signature for item in known]
    return SeenImages.of(digests, looks, [item.label for item in known], CALIBRATED)


def outputs_of(
    classifier: PromptedClassifier, items: Sequence[Any], names: Sequence[str] | None = None
) -> Outputs:
    """The logits of images, which are computed if the images are not of a bank.

    Raises:
        UsageError: they would need too much memory.
    """
    count = len(items) * len(names or classifier.class_names)
    if count > MOST_LOGITS:
        fault = f"{len(items):,} images have {count:,} logits, {25 * count / 1e9:.0f} GB of memory"
        raise UsageError(fault, f"give fewer images: {MOST_LOGITS:,} logits are the most")
    if isinstance(items[0], Stored):
        before = torch.from_numpy(np.stack([item.before for item in items]))
        said = HeadOnly(classifier).predict(before, names)
    else:
        said = classifier.predict([item.impath for item in items], names)
    return Outputs(said.logits.double().numpy(), np.array([item.label for item in items]))
