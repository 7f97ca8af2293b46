import json
import os
import random
from contextlib import suppress
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from .base import DatasetError, Items
from .folders import Classes, FolderDataset

PARTS = ("train", "val", "test")


@DATASET_REGISTRY.register()
class ImageFolder(FolderDataset):
    """Images of one's own: DATASET.ROOT is their folder itself (docs/your_own_data.md).

    It holds `train/<class>/*`, `test/<class>/*` and perhaps `val/<class>/*`; or `<class>/*`, and then
    DATASET.SPLIT_SEED (0 or more) asks for a split, which is saved there and taken from then on. Class names are those
    of the folders, or what classnames.txt or classnames.json says of them.
    """

    remedy = "see docs/your_own_data.md"

    def read_split(self) -> tuple[Items, Items, Items]:
        seed, there = self.cfg.DATASET.get("SPLIT_SEED", -1), [part for part in PARTS if (self.root / part).is_dir()]
        if not {"train", "test"} <= set(there):
            if seed >= 0:
                return self.made_split(seed)
            raise DatasetError(
                f"no folders train and test in {self.root}: move images to train/CLASS and test/CLASS in it, or have "
                f"those in its CLASS folders split by DATASET.SPLIT_SEED 1 ({self.remedy})"
            )
        if seed >= 0:
            raise DatasetError(f"{self.root} has folders train and test already: leave out DATASET.SPLIT_SEED")
        folders = {folder for part in there for folder in self.class_folders(self.root / part)}
        classes = self.classes(sorted(folders))
        return tuple(self.read_classes(self.root / part, classes) if part in there else [] for part in PARTS)

    def made_split(self, seed: int) -> tuple[Items, Items, Items]:
        """The split that was made with this seed; it is made now if it was not yet."""
        self.split_file = f"split_seed{seed}.json"
        file, classes = self.root / self.split_file, self.classes(self.class_folders(self.root))
        if not file.is_file():
            return self.make_split(file, seed, classes)
        split = super().read_split()
        found = {Path(item.impath).parent.name: (item.label, item.classname) for part in split for item in part}
        if found != classes:
            raise DatasetError(f"{file} was made of other classes or class names: delete it to split the images anew")
        return split

    def make_split(self, file: Path, seed: int, classes: Classes) -> tuple[Items, Items, Items]:
        """Of each class 20% for validation (rounded down), 30% for testing (rounded up), the rest for training."""
        rng, split = random.Random(seed), {part: [] for part in PARTS}
        for images in self.split_dataset_by_label(self.read_classes(self.root, classes)).values():
            n_val, n_test = len(images) // 5, (3 * len(images) + 9) // 10
            n_train = len(images) - n_val - n_test
            if n_train < 1:
                raise DatasetError(f"{images[0].impath} is the only image of its class: a split takes two")
            rng.shuffle(images)
            split["train"] += images[:n_train]
            split["val"] += images[n_train : n_train + n_val]
            split["test"] += images[n_train + n_val :]
        print(
            f"Split {self.root} with seed {seed}: {' / '.join(f'{len(split[part]):,} {part}' for part in PARTS)} images"
        )
        self.save_split(file, split)
        return tuple(split.values())

    def save_split(self, file: Path, split: dict[str, Items]) -> None:
        """Write a split whole or not at all; where the folder is read-only, say so."""
        rows = {
            part: [[os.path.relpath(item.impath, self.root), item.label, item.classname] for item in items]
            for part, items in split.items()
        }
        partial = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            partial.write_text(json.dumps(rows), encoding="utf-8")
            partial.replace(file)
            print(f"Saved as {file}, which is taken from now on")
        except OSError as error:
            print(f"Cannot save {file} ({error.strerror}): split anew by each run, alike while the images are the same")
        finally:
            with suppress(OSError):
                partial.unlink()

    def classes(self, folders: list[str]) -> Classes:
        """Label and class name by folder."""
        for file in (self.root / "classnames.json", self.root / "classnames.txt"):
            if file.is_file():
                print(f"Class names: {file}")
                words = self.read_classnames(file) if file.suffix == ".txt" else self.read_json(file)
                return self.name_folders(folders, words, str(file))
        return self.name_folders(folders, {folder: folder.replace("_", " ") for folder in folders}, str(self.root))

    def read_json(self, file: Path) -> dict[str, str]:
        try:
            words = json.loads(file.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise DatasetError(f"{file} is no JSON ({error}): mend or delete it") from None
        if not isinstance(words, dict) or not all(isinstance(name, str) and name.strip() for name in words.values()):
            raise DatasetError(f'{file} is to be {{"FOLDER": "NAME", ...}}: mend or delete it')
        return words
