"""What every dataset shares: where its files are, its fixed split, the few-shot choice, base and new classes."""

import gc
import json
import os
import random
import shlex
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

from dassl.data.datasets import DatasetBase, Datum

from common.errors import UsageError

Items = list[Datum]


class DatasetError(UsageError):
    """Raised for files of a dataset that are missing or damaged; the remedy says how to get them."""


class FewShotDataset(DatasetBase):
    """A dataset in CoOp's layout, as a run sees it.

    A subclass names its places (`dataset_dir` under DATASET.ROOT, `image_dir` and `split_file` within it), the Google
    Drive id of its split, and what is published of its size. One without a split file overrides `read_split`.

    Config keys: DATASET.ROOT, DATASET.NUM_SHOTS (below 1: every image), DATASET.SUBSAMPLE_CLASSES (`all`, `base` or
    `new`) and SEED.

    Args:
        cfg: the configuration.
        images (bool): refuse to start when an image is missing. Without, the split alone is read.
    """

    config_name = ""  # its YAML in configs/datasets, unless named as the module
    dataset_dir = ""
    image_dir = ""
    split_file = ""
    split_id = ""
    counts: tuple[int, int, int] | None = None  # images for training, validation and test
    n_classes: int | None = None
    test_only = False  # it serves to test what was learned elsewhere
    val_is_test = False  # its test images are called its validation set
    template = "a photo of a {}."  # zero-shot CLIP's sentence (CoOp, appendix A)

    def __init_subclass__(cls):
        cls.config_name = vars(cls).get("config_name", cls.__module__.rpartition(".")[2])

    def __init__(self, cfg, images: bool = True):
        self.cfg = cfg
        self.data = Path(os.path.expanduser(cfg.DATASET.ROOT)).absolute()
        self.root = self.data / self.dataset_dir
        self.images = self.root / self.image_dir
        if not self.root.is_dir():
            missing = self.root if self.data.is_dir() else self.data
            raise DatasetError(f"no folder {missing}: set --root (DATA for scripts) to its place, or {self.remedy}")
        with garbage_collection_paused():
            train, val, test = self.read_split()
        problem = label_problem(train, val, test)
        if problem:
            raise DatasetError(f"{self.root / self.split_file}: {problem}; {self.remedy}")
        size = (len(train), len(val), len(test))
        if self.counts not in (None, size):
            print(
                f"{type(self).__name__} has {size} images for training, validation and test here, {self.counts} as "
                "published: results do not compare"
            )

        shots = cfg.DATASET.NUM_SHOTS
        if shots >= 1:
            # The literature's choice: Python's generator, freshly seeded, training classes first (CoOp, MaPLe, ...).
            random.seed(cfg.SEED if cfg.SEED >= 0 else None)
            train = self.generate_fewshot_dataset(train, num_shots=shots) if train else train
            val = self.generate_fewshot_dataset(val, num_shots=min(shots, 4)) if val else val
        which = cfg.DATASET.SUBSAMPLE_CLASSES
        train, val, test = select_classes(which, train, val, test)
        if not test or not (train or self.test_only):
            part = "testing" if train else "training"
            raise DatasetError(
                f"{type(self).__name__} has no images for {part} with SUBSAMPLE_CLASSES {which}: {self.remedy}"
            )
        if images:
            self.check_images([*train, *val, *test])
        super().__init__(
            train_x=test if self.test_only else train,  # classes are counted and named by it
            val=test if self.val_is_test else val or None,
            test=test,
        )

    @property
    def remedy(self) -> str:
        """What to do about files that are missing."""
        return f"get it by: python tools/prepare.py {self.config_name} --root {shlex.quote(str(self.data))}"

    @property
    def renewal(self) -> str:
        """What to do about a file that is damaged."""
        return f"delete it, then {self.remedy}"

    def read_split(self) -> tuple[Items, Items, Items]:
        """Training, validation and test items; here those of the fixed split file."""
        path = self.root / self.split_file
        if not path.is_file():
            raise DatasetError(f"split file {path} is missing: {self.remedy}")
        try:
            split = json.loads(path.read_text(encoding="utf-8-sig"))
            parts = {part: [self.read_item(*row) for row in split[part]] for part in ("train", "val", "test")}
            if not parts["test"] or not (parts["train"] or self.test_only):
                raise ValueError("no images to learn from, or none to test on")
            return tuple(parts.values())
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DatasetError(
                f"split file {path} is damaged ({type(error).__name__}: {error}): {self.renewal}"
            ) from None

    def read_lines(self, path: Path) -> list[str]:
        """The lines of a text file, without those that are empty."""
        if not path.is_file():
            raise DatasetError(f"{path} is missing: {self.remedy}")
        try:
            text = path.read_text(encoding="utf-8-sig")  # Windows' editors may mark the beginning
            return [line.strip() for line in text.splitlines() if line.strip()]
        except UnicodeDecodeError:
            raise DatasetError(f"{path} is no text: {self.renewal}") from None

    def read_item(self, path: str, label: int, classname: str) -> Datum:
        """A row of a split file, its path below `image_dir`, as a Datum.

        Raises:
            TypeError: not a path, a label from 0 and a name.
        """
        named = all(isinstance(text, str) and text.strip() for text in (path, classname))
        if type(label) is not int or label < 0 or not named:
            raise TypeError(f"{[path, label, classname]} is not [path, label from 0, class name]")
        return Datum(impath=f"{self.images}/{path}", label=label, classname=classname)

    def check_images(self, items: Items) -> None:
        """Refuse to start when an image of the run is missing: each folder is listed once, no image is opened."""
        folders = defaultdict(set)
        for item in items:
            folder, name = os.path.split(item.impath)
            folders[folder].add(name)
        missing = []
        for folder, names in folders.items():
            missing += sorted(f"{folder}/{name}" for name in names - names_in(folder))
        if missing:
            raise DatasetError(
                f"{len(missing)} of {len(items)} images of {type(self).__name__} are missing, the first {missing[0]}: "
                f"{self.remedy}"
            )


def names_in(folder: str | Path) -> set[str]:
    """What a folder holds, without links that lead nowhere; nothing if there is no such folder."""
    if not os.path.isdir(folder):
        return set()
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if not entry.is_symlink() or os.path.exists(entry)}


@contextmanager
def garbage_collection_paused():
    """Python looks for cycles among all objects time and again as a million of them are made: half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def label_problem(train: Items, val: Items, test: Items) -> str | None:
    """What is wrong with the labels of a split, if anything is.

    Two labels may have one class name (they are two classes), and labels may have gaps (they are closed later).
    """
    names = {}
    for label, name in {(item.label, item.classname): None for part in (train, val, test) for item in part}:
        if names.setdefault(label, name) != name:
            return f"label {label} is both {names[label]!r} and {name!r}"
    learned = {item.label for item in train}
    unlearned = {item.label for part in (val, test) for item in part} - learned if learned else None
    if unlearned:
        label = min(unlearned)
        return f"class {names[label]!r} (label {label}) has images for validation or test, and none for training"
    return None


def select_classes(which: str, *parts: Items) -> list[Items]:
    """Items of `all` classes, or of the `base` or `new` half of them, their labels counted anew from 0 without gaps.

    Base classes are the first ceil(n / 2) labels (CoCoOp's protocol).
    """
    labels = sorted({item.label for part in parts for item in part})
    half = (len(labels) + 1) // 2
    halves = {"all": labels, "base": labels[:half], "new": labels[half:]}
    if which not in halves:
        raise DatasetError(f"DATASET.SUBSAMPLE_CLASSES is {which!r}: it can be all, base or new")
    relabel = {label: new for new, label in enumerate(halves[which])}

    def relabelled(item: Datum) -> Datum:
        label = relabel[item.label]
        if label == item.label:
            return item
        return Datum(impath=item.impath, label=label, domain=item.domain, classname=item.classname)

    return [[relabelled(item) for item in part if item.label in relabel] for part in parts]
