import json
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from shlex import quote

from dassl.data.datasets import DATASET_REGISTRY, Datum

from common.errors import UsageError, one_line
from common.files import write_bytes
from common.names import plain, printable
from common.text import read_json

from .base import DatasetError, Items, Split
from .folders import Classes, FolderDataset

PARTS = ("train", "val", "test")
LIKE_PARTS = {*PARTS, "training", "valid", "validation", "testing"}


@DATASET_REGISTRY.register()
class ImageFolder(FolderDataset):
    """The user's own images: DATASET.ROOT is their folder (docs/datasets.md).

    It contains `train/<class>/*`, `test/<class>/*` and optionally `val/<class>/*`. Or it contains
    `<class>/*`: then DATASET.SPLIT_SEED (from 0) splits the images, and the split is saved there
    for later runs. Images may be in folders below those of the classes. Class names are the folder
    names, or those in classnames.txt or classnames.json.
    """

    named_by_config = True
    remedy = "see docs/own_classes.md"

    def read_split(self) -> Split:
        seed = self.cfg.DATASET.get("SPLIT_SEED", -1)
        parts = [part for part in PARTS if (self.root / part).is_dir()]
        if not {"train", "test"} <= set(parts):
            if seed >= 0:
                return self.seeded_split(seed)
            remedy = (
                "move images to train/CLASS and test/CLASS in it, or split the images of its CLASS "
                "folders with DATASET.SPLIT_SEED 1 (studies, prepare.py: in a YAML file of "
                f"configs/datasets; {self.remedy})"
            )
            raise DatasetError(f"no folders train and test in {self.root}", remedy, self.root)
        if seed >= 0:
            fault = f"{self.root} already has folders train and test"
            raise DatasetError(fault, "remove DATASET.SPLIT_SEED", self.root)
        self.name_others(self.class_folders(self.root), parts)
        classes = self.classes(
            sorted({name for part in parts for name in self.class_folders(self.root / part)})
        )
        train, val, test = (
            self.read_classes(self.root / part, classes) if part in parts else [] for part in PARTS
        )
        return train, val, test

    def name_others(self, folders: Sequence[str], parts: Iterable[str]) -> None:
        """Print which folders beside those of the parts are not read."""
        if others := sorted({*folders}.difference(parts)):
            print(f"Left out: {len(others):,} folders beside train, such as {printable(others[0])}")

    def check_classes(self, folders: Sequence[str]) -> None:
        """Raise DatasetError for a class folder with the name of a part, in capitals or not."""
        for name in folders:
            if name.lower() in LIKE_PARTS:
                remedy = (
                    "call the parts train, val and test, with class folders in each; or "
                    "rename the class"
                )
                raise DatasetError(
                    f"{self.root} has a folder {name} where class folders are", remedy, self.root
                )

    def seeded_split(self, seed: int) -> Split:
        """The saved split of this seed; it is made if it does not exist."""
        self.split_file = f"split_seed{seed}.json"
        file = self.root / self.split_file
        names = self.class_folders(self.root)
        self.check_classes(names)
        classes = self.classes(names)
        if not file.is_file():
            return self.make_split(file, seed, classes)
        command = f"python tools/prepare.py --add {quote(str(self.root))}"
        self.remedy = f"restore them, or bring the split up to date: {command}"
        split = super().read_split()
        items = list(chain(*split))
        if {self.class_of(item): (item.label, item.classname) for item in items} != classes:
            remedy = self.remedy.replace("restore them, or bring the split", "bring it")
            raise DatasetError(f"{file} was made from other classes or class names", remedy, file)
        there = {item.impath for item in self.read_classes(self.root, classes)}
        self.print_unused(there.difference(item.impath for item in items))
        return split

    def print_unused(self, new: set[str]) -> None:
        """Name images that a saved split lacks."""
        if new:
            fault = f"{len(new):,} images in {self.root} are not in {self.split_file}"
            advice = self.remedy.partition(", or ")[2].capitalize()
            print(f"{fault}, such as {printable(min(new))}: they are not used. {advice}")

    def class_of(self, item: Datum) -> str:
        """The class folder of an image of a split."""
        return os.path.relpath(item.impath, self.root).split("/")[0]

    def divide(
        self, seed: int, classes: Classes, places: Mapping[str, str] | None = None
    ) -> dict[str, Items]:
        """The images of each part: of a class 20% for validation (rounded down), 30% for testing
        (rounded up), the rest for training. Those that have a part already, in `places` by their
        paths, stay there.
        """
        rng = random.Random(seed)
        places = places or {}
        parts: dict[str, Items] = {part: [] for part in PARTS}
        for images in self.split_dataset_by_label(self.read_classes(self.root, classes)).values():
            sizes = {"val": len(images) // 5, "test": (3 * len(images) + 9) // 10}
            sizes["train"] = len(images) - sum(sizes.values())
            if sizes["train"] < 1:
                raise DatasetError(
                    f"{images[0].impath} is the only image of its class", "a split needs two"
                )
            new = [item for item in images if item.impath not in places]
            rng.shuffle(new)
            for part in PARTS:
                old = [item for item in images if places.get(item.impath) == part]
                wanted = max(0, sizes[part] - len(old))
                parts[part] += [*old, *new[:wanted]]
                new = new[wanted:]
        return parts

    def make_split(self, file: Path, seed: int, classes: Classes) -> Split:
        """A new split, which is saved."""
        parts = self.divide(seed, classes)
        counts = " / ".join(f"{len(items):,} {part}" for part, items in parts.items())
        print(f"Split {self.root} with seed {seed}: {counts} images")
        try:
            write_bytes(file, self.written(parts))
            print(f"Saved as {file}; later runs use it")
        except OSError as error:
            # The images may be in a folder that is only read; the same seed splits them equally
            print(f"Split not saved in {file}: {error.strerror}")
        return parts["train"], parts["val"], parts["test"]

    def written(self, parts: Mapping[str, Items]) -> bytes:
        """The content of a split file."""

        def row(item: Datum) -> list:
            return [os.path.relpath(item.impath, self.root), item.label, item.classname]

        return json.dumps({part: list(map(row, items)) for part, items in parts.items()}).encode()

    def classes(self, folders: list[str]) -> Classes:
        """Label and class name by folder."""
        for file in (self.root / "classnames.json", self.root / "classnames.txt"):
            if file.is_file():
                print(f"Class names: {file}")
                names = (
                    self.read_classnames(file) if file.suffix == ".txt" else self.read_names(file)
                )
                return self.name_folders(folders, names, str(file))
        return self.name_folders(
            folders, {folder: plain(folder) for folder in folders}, str(self.root)
        )

    def read_names(self, file: Path) -> dict[str, str]:
        names = read_json(file)
        if not isinstance(names, dict) or not all(
            isinstance(name, str) and name.strip() for name in names.values()
        ):
            raise DatasetError(
                f'{file} is invalid: expected {{"FOLDER": "NAME", ...}}', "fix or delete it", file
            )
        return names


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
