import json
import os
import random
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from common.text import read_json

from . import splits
from .base import DatasetError, Items, Split
from .folders import Classes, FolderDataset

PARTS = ("train", "val", "test")


@DATASET_REGISTRY.register()
class ImageFolder(FolderDataset):
    """The user's own images: DATASET.ROOT is their folder (docs/own_classes.md).

    It contains `train/<class>/*`, `test/<class>/*` and optionally `val/<class>/*`. Or it contains `<class>/*`: then
    DATASET.SPLIT_SEED (from 0) splits the images, and the split is saved there for later runs. Class names are the
    folder names, or those in classnames.txt or classnames.json.
    """

    named_by_config = True
    remedy = "see docs/own_classes.md"

    def read_split(self) -> Split:
        seed = self.cfg.DATASET.get("SPLIT_SEED", -1)
        parts = [part for part in PARTS if (self.root / part).is_dir()]
        if not {"train", "test"} <= set(parts):
            if seed >= 0:
                return self.seeded_split(seed)
            remedy = "move images to train/CLASS and test/CLASS in it, or split the images of its CLASS folders with"
            remedy += f" DATASET.SPLIT_SEED 1 (studies, prepare.py: in a YAML file of configs/datasets; {self.remedy})"
            raise DatasetError(f"no folders train and test in {self.root}", remedy, self.root)
        if seed >= 0:
            what = f"{self.root} already has folders train and test"
            raise DatasetError(what, "remove DATASET.SPLIT_SEED", self.root)
        classes = self.classes(sorted({name for part in parts for name in self.class_folders(self.root / part)}))
        train, val, test = (self.read_classes(self.root / part, classes) if part in parts else [] for part in PARTS)
        return train, val, test

    def seeded_split(self, seed: int) -> Split:
        """The saved split of this seed; it is made if it does not exist."""
        self.split_file = f"split_seed{seed}.json"
        file = self.root / self.split_file
        classes = self.classes(self.class_folders(self.root))
        if not file.is_file():
            return self.make_split(file, seed, classes)
        split = super().read_split()
        folders = {Path(item.impath).parent.name: (item.label, item.classname) for part in split for item in part}
        if folders != classes:
            what = f"{file} was made from other classes or class names"
            raise DatasetError(what, "delete it to split the images again", file)
        return split

    def make_split(self, file: Path, seed: int, classes: Classes) -> Split:
        """Of each class 20% for validation (rounded down), 30% for testing (rounded up), the rest for training."""
        rng = random.Random(seed)
        parts: dict[str, Items] = {part: [] for part in PARTS}
        for images in self.split_dataset_by_label(self.read_classes(self.root, classes)).values():
            n_test = (3 * len(images) + 9) // 10
            n_train = len(images) - len(images) // 5 - n_test
            if n_train < 1:
                raise DatasetError(f"{images[0].impath} is the only image of its class", "a split needs two")
            rng.shuffle(images)
            parts["train"] += images[:n_train]
            parts["val"] += images[n_train:-n_test]
            parts["test"] += images[-n_test:]
        counts = " / ".join(f"{len(items):,} {part}" for part, items in parts.items())
        print(f"Split {self.root} with seed {seed}: {counts} images")
        rows = {
            part: [[os.path.relpath(item.impath, self.root), item.label, item.classname] for item in items]
            for part, items in parts.items()
        }
        try:
            splits.write_missing({file: json.dumps(rows).encode()})
            print(f"Saved as {file}; later runs use it")
        except OSError as error:  # the images may be in a folder that is only read; the same seed splits them equally
            print(f"Split not saved in {file}: {error.strerror}")
        return parts["train"], parts["val"], parts["test"]

    def classes(self, folders: list[str]) -> Classes:
        """Label and class name by folder."""
        for file in (self.root / "classnames.json", self.root / "classnames.txt"):
            if file.is_file():
                print(f"Class names: {file}")
                names = self.read_classnames(file) if file.suffix == ".txt" else self.read_names(file)
                return self.name_folders(folders, names, str(file))
        return self.name_folders(folders, {folder: folder.replace("_", " ") for folder in folders}, str(self.root))

    def read_names(self, file: Path) -> dict[str, str]:
        names = read_json(file)
        if not isinstance(names, dict) or not all(isinstance(name, str) and name.strip() for name in names.values()):
            raise DatasetError(f'{file} is invalid: expected {{"FOLDER": "NAME", ...}}', "fix or delete it", file)
        return names
