"""What every dataset shares: where its files are, its fixed split, the few-shot choice, base and new classes."""

import json
import os
import random
from collections import defaultdict
from pathlib import Path

from dassl.data.datasets import DatasetBase, Datum

Items = list[Datum]


class DatasetError(ValueError):
    """Files of a dataset are missing or damaged; the message says which and how to get them (one line)."""

    one_line = True


class FewShotDataset(DatasetBase):
    """A dataset in CoOp's layout, as a run sees it.

    A subclass names its places (`dataset_dir` under DATASET.ROOT, `image_dir` and `split_file` within it) and the
    Google Drive id of its split. One without a split file overrides `read_split`.

    Config keys: DATASET.ROOT, DATASET.NUM_SHOTS (below 1: every image), DATASET.SUBSAMPLE_CLASSES (`all`, `base` or
    `new`) and SEED.
    """

    dataset_dir = ""
    image_dir = ""
    split_file = ""
    split_id = ""

    def __init__(self, cfg):
        root = Path(cfg.DATASET.ROOT).expanduser().absolute()
        self.root = root / self.dataset_dir
        if not self.root.is_dir():
            missing = root if not root.is_dir() else self.root
            raise DatasetError(
                f"no folder {missing}: put {type(self).__name__} there, or set --root (DATA for scripts) to its place"
            )
        train, val, test = self.read_split()

        shots = cfg.DATASET.NUM_SHOTS
        if shots >= 1:
            # The literature's choice: Python's generator, freshly seeded, training classes first (CoOp, MaPLe, ...).
            random.seed(cfg.SEED if cfg.SEED >= 0 else None)
            train = self.generate_fewshot_dataset(train, num_shots=shots)
            val = self.generate_fewshot_dataset(val, num_shots=min(shots, 4)) if val else val
        train, val, test = select_classes(cfg.DATASET.SUBSAMPLE_CLASSES, train, val, test)
        self.check_images([*train, *val, *test])
        super().__init__(train_x=train, val=val or None, test=test)

    def read_split(self) -> tuple[Items, Items, Items]:
        """Training, validation and test items of the fixed split file."""
        path = self.root / self.split_file
        remedy = f"download it from https://drive.google.com/uc?id={self.split_id}"
        if not path.is_file():
            raise DatasetError(f"split file {path} is missing: {remedy}")
        try:
            split = json.loads(path.read_text())
            return tuple(self.read_items(split[part]) for part in ("train", "val", "test"))
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"split file {path} is damaged ({type(error).__name__}: {error}): {remedy}") from None

    def read_items(self, rows: list) -> Items:
        """[path below `image_dir`, label, class name] -> Datum."""
        images = self.root / self.image_dir
        return [Datum(impath=f"{images}/{path}", label=int(label), classname=name) for path, label, name in rows]

    def check_images(self, items: Items) -> None:
        """Refuse to start when an image of the run is missing: each folder is listed once, no image is opened."""
        folders = defaultdict(set)
        for item in items:
            folder, name = os.path.split(item.impath)
            folders[folder].add(name)
        missing = []
        for folder, names in folders.items():
            there = set(os.listdir(folder)) if os.path.isdir(folder) else set()
            missing += sorted(f"{folder}/{name}" for name in names - there)
        if missing:
            raise DatasetError(
                f"{len(missing)} of {len(items)} images of {type(self).__name__} are missing, the first {missing[0]}: "
                "restore them, or unpack the dataset's archive again"
            )


def select_classes(which: str, *parts: Items) -> list[Items]:
    """Items of the `base` or `new` half of the classes, relabelled from 0, or `all` as they are.

    Base classes are the first ceil(n / 2) labels (CoCoOp's protocol).
    """
    if which not in ("all", "base", "new"):
        raise DatasetError(f"DATASET.SUBSAMPLE_CLASSES is {which!r}: it can be all, base or new")
    if which == "all":
        return list(parts)
    labels = sorted({item.label for part in parts for item in part})
    half = (len(labels) + 1) // 2
    chosen = labels[:half] if which == "base" else labels[half:]
    relabel = {label: new for new, label in enumerate(chosen)}
    return [
        [
            Datum(impath=item.impath, label=relabel[item.label], domain=item.domain, classname=item.classname)
            for item in part
            if item.label in relabel
        ]
        for part in parts
    ]
