"""Shared by all datasets: their folders, their fixed split, few-shot sampling, base and new
classes.
"""

import os
import random
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeVar

from dassl.data.datasets import DatasetBase, Datum

from common.errors import UsageError, one_line
from common.names import CONTROL, as_people_see, check_known_names, check_template
from common.text import lines_of, read_json, read_text

from . import sentences, splits
from .files import File
from .noise import noisy_labels

Item = TypeVar("Item")
Items = list[Datum]
Split = tuple[Items, Items, Items]  # for training, validation and testing


class DatasetError(UsageError):
    """Raised for files of a dataset that are missing or damaged; `remedy` tells how to get them."""


class FewShotDataset(DatasetBase):
    """A dataset in CoOp's folder layout, as a run uses it.

    A subclass sets the attributes below; one without a split file overrides `read_split`.
    Registered in DATASET_REGISTRY and named in a YAML file of configs/datasets, it works
    everywhere; with `files`, tools/prepare.py can also download it.

    Config keys: DATASET.ROOT, DATASET.NUM_SHOTS (-1: every image),
    DATASET.FEWSHOT_FILE (a file that chooses them), DATASET.SUBSAMPLE_CLASSES (`all`, `base` or
    `new`), DATASET.HOLD_OUT (validate on one training image of each class), DATASET.TEMPLATE
    (replaces `template`), DATASET.SENTENCES (a file with sentences for each class), TEST.MAX_IMAGES
    (of the test images, 0: all) and SEED.

    Args:
        cfg: the configuration.
        images (bool): check that every image exists. If False, only the split must exist.

    Attributes:
        sentences: those of DATASET.SENTENCES, by class; empty without a file.
        fewshot_file: `file` and `file_sha256` of DATASET.FEWSHOT_FILE, for the data-use card; empty
            without one.

    Raises DatasetError if a file is missing or damaged, or the split has no images for the chosen
    classes.
    """

    # Where its images are
    config_name = ""  # name of its YAML file in configs/datasets; default: the module's name
    dataset_dir = ""  # under DATASET.ROOT
    image_dir = ""  # in dataset_dir
    split_file = ""  # in dataset_dir
    counts: tuple[int, int, int] | None = (
        None  # published numbers of training, validation and test images
    )
    n_classes: int | None = None
    test_only = False  # no training images: it tests prompts that were learned on another dataset
    named_by_config = False  # the user's images are named after their YAML file
    is_synthetic = False  # the first run draws its images
    val_is_test = False  # its validation images are its test images
    template = "a photo of a {}."  # for zero-shot CLIP (CoOp, appendix A)

    # How to get it
    files: tuple[File, ...] = ()  # to download: text files first
    licence = ""  # summary of its terms
    page = ""  # address where the terms are published
    manual_steps = ""  # how to get files that cannot be downloaded by this project

    def __init_subclass__(cls):
        cls.config_name = vars(cls).get("config_name", cls.__module__.rpartition(".")[2])

    def __init__(self, cfg, images: bool = True):
        self.cfg = cfg
        self.fewshot_file: dict[str, str] = {}
        self.noise: dict[str, int] = {}  # the number of wrong labels, if there are any
        self.template = cfg.DATASET.get("TEMPLATE", "") or type(self).template
        check_template(self.template, "DATASET.TEMPLATE")
        self.title = cfg.DATASET.get("TITLE", "") or type(self).__name__
        if CONTROL.search(self.title):
            raise UsageError(
                f"DATASET.TITLE is {self.title!r}, which has control characters",
                "give another title",
            )
        self.data = Path(os.path.expanduser(cfg.DATASET.ROOT)).absolute()
        self.root = self.data / self.dataset_dir
        self.images = self.root / self.image_dir
        # The last training image of each class is for validation
        self.holds_out = cfg.DATASET.get("HOLD_OUT", False)
        train, val, test = self.load()
        if images:
            self.check_images([*train, *val, *test])
        most = cfg.TEST.get("MAX_IMAGES", 0)
        super().__init__(
            train_x=test if self.test_only else train,  # classes are counted and named by it
            val=test if self.val_is_test and not self.holds_out else val or None,
            test=spread(test, most) if most else [*test],
        )
        every = [*train, *val, *test]  # a class may have no training images
        self._num_classes = self.get_num_classes(every)
        self._lab2cname, self._classnames = self.get_lab2cname(every)

    @property
    def remedy(self) -> str:
        """How to get missing files."""
        return (
            f"get it by: python tools/prepare.py {self.config_name} --root "
            f"{shlex.quote(str(self.data))}"
        )

    @property
    def how_to_replace(self) -> str:
        """How to replace a damaged file."""
        return f"delete it, then {self.remedy}"

    def load(self) -> Split:
        """The images of this run: the split, reduced to the configured shots and classes."""
        if not self.root.is_dir():
            missing = self.root if self.data.is_dir() else self.data
            remedy = f"set --root (DATA for scripts) to its location, or {self.remedy}"
            raise DatasetError(f"no folder {missing}", remedy, missing)
        split = self.read_split()
        self.check_split(*split)
        self.sentences: dict[str, list[str]] = {}
        if self.cfg.DATASET.get("SENTENCES", ""):
            names = {item.classname for part in split for item in part}
            self.sentences = sentences.read_sentences(sentences.sentences_file(self.cfg)[0], names)
        train, val, test = select_classes(
            self.cfg.DATASET.SUBSAMPLE_CLASSES, *self.sample_shots(*split)
        )
        if not test or not (train or self.test_only):
            part = "testing" if train else "training"
            classes = f"SUBSAMPLE_CLASSES {self.cfg.DATASET.SUBSAMPLE_CLASSES}"
            raise DatasetError(f"{self.title} has no images for {part} with {classes}", self.remedy)
        if rate := self.cfg.DATASET.get("NOISE_RATE", 0):
            train = self.with_noise(train, rate, [*train, *val, *test])
        return train, val, test

    def with_noise(self, train: Items, rate: float, every: Items) -> Items:
        """The training images, of which the share `rate` has wrong labels of the classes of
        `every`. Raises UsageError without a seed, or with one class.
        """
        names = {item.label: item.classname for item in every}
        if self.cfg.SEED < 0:
            fault = f"DATASET.NOISE_RATE is {rate}, and there is no seed"
            raise UsageError(fault, "give one by --seed: it draws the wrong labels")
        if len(names) < 2:
            raise UsageError(f"DATASET.NOISE_RATE is {rate}, and there is one class", "set it to 0")
        labels = noisy_labels(
            [item.label for item in train],
            len(names),
            rate,
            self.cfg.DATASET.NOISE_TYPE,
            self.cfg.SEED,
        )
        pairs = list(zip(train, labels, strict=True))
        self.noise = {"wrong_labels": sum(item.label != label for item, label in pairs)}
        print(f"Wrong labels: {self.noise['wrong_labels']} of {len(train)} training images")
        return [Datum(item.impath, label, item.domain, names[label]) for item, label in pairs]

    def read_split(self) -> Split:
        """Training, validation and test images; here from the split file."""
        path = self.root / self.split_file
        if not path.is_file():
            raise DatasetError(f"split file {path} is missing", self.remedy, path)
        try:
            split = read_json(path)
            train, val, test = (
                [self.read_item(*row) for row in split[part]] for part in ("train", "val", "test")
            )
            if not test or not (train or self.test_only):
                raise ValueError("no images to learn from, or none to test on")
        except (ValueError, KeyError, TypeError) as error:
            reason = (
                error.fault
                if isinstance(error, UsageError)
                else one_line(f"{type(error).__name__}: {error}")
            )
            reason = f"it has no {error}" if isinstance(error, KeyError) else reason
            raise DatasetError(
                f"split file {path} is damaged ({reason})", self.how_to_replace, path
            ) from None
        return train, val, test

    def read_lines(self, path: Path) -> list[str]:
        """The lines of a text file that are not empty."""
        if not path.is_file():
            raise DatasetError(f"{path} is missing", self.remedy, path)
        try:
            text = read_text(path)
        except UsageError as error:
            raise DatasetError(error.fault, self.how_to_replace, path) from error
        return lines_of(text)

    def read_item(self, path: str, label: int, classname: str) -> Datum:
        """A row of a split file, its path relative to `image_dir`, as a Datum.

        Raises:
            TypeError: it is not a path, a label from 0 and a name.
            ValueError: the path has `..` in it.
        """
        named = all(isinstance(text, str) and text.strip() for text in (path, classname))
        if type(label) is not int or label < 0 or not named:
            raise TypeError(f"{[path, label, classname]} is not [path, label from 0, class name]")
        if ".." in path.split("/"):
            raise ValueError(f"{path!r} is outside the dataset's folder")
        return Datum(impath=f"{self.images}/{path}", label=label, classname=classname)

    def check_split(self, train: Items, val: Items, test: Items) -> None:
        """Check that each label has one printable name, and that each class has training images if
        any class has.

        Two labels may have the same class name (they are two classes), and labels may have gaps
        (closed later). Names that are equal and numbers of images other than the published ones are
        printed.
        """
        names = self.names_by_label(
            {(item.label, item.classname): None for item in chain(train, val, test)}
        )
        if twins := same_names(list(names.values())):
            print(twins)
        learned = {item.label for item in train}
        unlearned = names.keys() - learned
        if learned and unlearned:
            name = f"class {names[min(unlearned)]!r} (label {min(unlearned)})"
            fault = f"{name} has images for validation or test, and none for training"
            raise DatasetError(fault, self.remedy, self.root / self.split_file)
        counts = (len(train), len(val), len(test))
        if self.counts not in (None, counts):
            here = f"{self.title} has {counts} images for training, validation and test here"
            print(f"{here}, {self.counts} as published: results do not compare")

    def names_by_label(self, pairs: Iterable[tuple[int, str]]) -> dict[int, str]:
        """The name of each label; DatasetError if it has two, or one is not printable."""
        where = self.root / self.split_file
        try:
            check_known_names([name for _, name in pairs], where)
        except UsageError as error:
            raise DatasetError(error.fault, self.remedy, where) from None
        names: dict[int, str] = {}
        for label, name in pairs:
            if names.setdefault(label, name) != name:
                fault = f"label {label} is both {names[label]!r} and {name!r}"
                raise DatasetError(fault, self.remedy, where)
        return names

    def sample_shots(self, train: Items, val: Items, test: Items) -> Split:
        """The few-shot images, the same as in the literature: CoOp, MaPLe, ...

        For ImageNet, CoOp's depend on the order in which the file system lists images; here, images
        are sorted.
        """
        number = self.cfg.DATASET.NUM_SHOTS
        whole = {"train": train, "val": val, "test": test}
        if number != -1:
            # Python's generator, freshly seeded; training images first.
            random.seed(self.cfg.SEED if self.cfg.SEED >= 0 else None)
            train = self.generate_fewshot_dataset(train, num_shots=number) if train else train
            val = self.generate_fewshot_dataset(val, num_shots=min(number, 4)) if val else val
        if train and self.cfg.DATASET.get("FEWSHOT_FILE", ""):
            chosen = self.read_choice(whole, train)
            train = chosen["train"]
            val = chosen.get("val", val)
        return (*self.hold_out(train), test) if self.holds_out else (train, val, test)

    def read_choice(self, whole: dict[str, Items], drawn: Items) -> dict[str, Items]:
        """The few-shot images of DATASET.FEWSHOT_FILE, which must be as many as those drawn."""
        number = self.cfg.DATASET.NUM_SHOTS
        given = self.cfg.DATASET.FEWSHOT_FILE.replace("{shots}", str(number))
        given = given.replace("{seed}", str(self.cfg.SEED))
        file = Path(os.path.expanduser(given)).absolute()
        chosen, self.fewshot_file = splits.read_split(file, whole, self.images, self.data)
        counts = Counter(item.label for item in chosen["train"])
        expected = Counter(item.label for item in drawn)
        for item in chosen["train"]:
            count = counts[item.label]
            if number != -1 and count != expected[item.label]:
                fault = f"{file} has {count} images of {item.classname!r}"
                fault = f"{fault}, and DATASET.NUM_SHOTS {number} means {expected[item.label]}"
                raise DatasetError(fault, "set NUM_SHOTS to its number, or to -1", file)
        return chosen

    def hold_out(self, train: Items) -> tuple[Items, Items]:
        """All images but the last of each class, and these."""
        last = {item.label: item for item in train}
        kept = [item for item in train if item is not last[item.label]]
        for label in last.keys() - {item.label for item in kept}:
            fault = (
                f"DATASET.HOLD_OUT leaves class {last[label].classname!r} of {self.title} "
                "without training images"
            )
            raise DatasetError(fault, "give two or more images of each class")
        return kept, list(last.values())

    def check_images(self, items: Items) -> None:
        """Check that every image is a regular file. No image is opened."""
        missing = missing_files(item.impath for item in items)
        if missing:
            # Reading a named pipe would wait
            state = "not regular files" if os.path.exists(missing[0]) else "missing"
            fault = (
                f"{len(missing)} of {len(items)} images of {self.title} are {state}, the first "
                f"{missing[0]}"
            )
            raise DatasetError(fault, self.remedy, missing[0])


def same_names(names: Sequence[str]) -> str:
    """A line about classes that have one name for people or for CLIP, which lowers the accuracy of
    both; empty if there are none."""
    twins = [name for name, number in Counter(map(as_people_see, names)).items() if number > 1]
    if not twins:
        return ""
    text = (
        "Classes with the same name: "
        f"{', '.join(map(repr, twins[:5]))}{', ...' if len(twins) > 5 else ''}"
    )
    return (
        f"{text}: their images count as errors of one another; rename the classes, or give them "
        "one label"
    )


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most this many of the items, evenly spread over them."""
    count = min(most, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def missing_files(paths: Iterable[str]) -> list[str]:
    """The paths that are neither regular files nor links to regular files. Each folder is listed
    once.
    """
    listed: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in listed:
            entries = os.scandir(folder) if os.path.isdir(folder) else ()
            # A link that leads to itself is an error of `entry.is_file()`
            listed[folder] = {
                entry.name
                for entry in entries
                if entry.is_file(follow_symlinks=False) or os.path.isfile(entry)
            }
        if name not in listed[folder]:
            missing.append(path)
    return missing


def number_of_base_classes(classes: int) -> int:
    """Base classes are the first ceil(n / 2) of n labels (CoCoOp's protocol)."""
    return (classes + 1) // 2


def select_classes(which: str, *parts: Items) -> list[Items]:
    """Images of `all` classes, or of the `base` or `new` half of them, with labels from 0 without
    gaps.
    """
    if which not in ("all", "base", "new"):
        raise DatasetError(f"DATASET.SUBSAMPLE_CLASSES is {which!r}", "use all, base or new")
    labels = sorted({item.label for part in parts for item in part})
    if which != "all":
        half = number_of_base_classes(len(labels))
        labels = labels[:half] if which == "base" else labels[half:]
    new = {label: number for number, label in enumerate(labels)}
    chosen = ([item for item in part if item.label in new] for part in parts)
    return [
        [Datum(item.impath, new[item.label], item.domain, item.classname) for item in part]
        for part in chosen
    ]
