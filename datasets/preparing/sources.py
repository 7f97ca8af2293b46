"""The table of sources.yaml, and the datasets that it is about."""

import difflib
import io
import os
import re
import shlex
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import yaml
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from yacs.config import CfgNode

from common.errors import UsageError
from common.start import ROOT

from .. import extend_cfg
from ..base import DatasetError, FewShotDataset, Items, names_in
from .files import File

TABLE = Path(__file__).with_name("sources.yaml")


@dataclass
class Source:
    """A dataset that can be prepared: its class, its terms and its files, the split first."""

    name: str
    dataset: type[FewShotDataset]
    licence: str = ""
    page: str = ""
    by_hand: str = ""
    files: list[File] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes to get in all; of several ways to the same images the one that can be downloaded."""
        return sum(file.size for file in self.files if file.link or self.by_hand)

    def folder(self, root: Path) -> Path:
        return root / self.dataset.dataset_dir

    def command(self, root: Path) -> str:
        """What to type to prepare it."""
        return f"python tools/prepare.py {self.name} --root {shlex.quote(str(root))}"

    def read(self, root: Path, *options: str, images: bool = False, seed: int = 1) -> FewShotDataset:
        """The dataset as a run under this root sees it; its images need not be there unless its split is folders.

        Raises:
            DatasetError: its split can't be read.
            UsageError: it is somebody's own kind of dataset, which can't be looked into.
        """
        if not issubclass(self.dataset, FewShotDataset):
            raise UsageError(f"{self.dataset.__name__} is no FewShotDataset (datasets/base.py): only those are checked")
        return self.dataset(load_cfg(self.name, root, seed, options), images=images)


def named_images(dataset: FewShotDataset) -> dict[str, Items]:
    """The images of each part of a split: a validation set that is the test set counts once."""
    parts = {"train": dataset.train_x, "val": dataset.val or [], "test": dataset.test}
    if dataset.test_only:
        parts["train"] = []
    if dataset.val_is_test:
        parts["val"] = []
    return parts


@cache
def table() -> dict[str, Source]:
    """Every dataset of sources.yaml, by its config name."""
    sources = {}
    for name, row in yaml.safe_load(TABLE.read_text()).items():
        dataset = dataset_class(name)
        files = [File(dataset=name, **file) for file in row.pop("files")]
        if dataset.split_id:
            files.insert(0, File(dataset.split_file, name, drive=dataset.split_id, about=2_000_000))
        sources[name] = Source(name, dataset, files=files, **row)
    return sources


def load_cfg(name: str, root: Path | None = None, seed: int = 1, options: Sequence[str] = ()) -> CfgNode:
    """The configuration of a dataset: Dassl's defaults, its YAML of configs/datasets, and KEY, VALUE, ... pairs.

    Keys of trainers, which such a YAML may have, are accepted as they are.
    """
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.set_new_allowed(True)
    cfg.merge_from_file(str(ROOT / "configs/datasets" / f"{name}.yaml"))
    cfg.merge_from_list(list(options))
    cfg.DATASET.ROOT, cfg.SEED = "" if root is None else str(root), seed
    return cfg


def dataset_class(name: str) -> type[FewShotDataset]:
    """The class behind a YAML of configs/datasets."""
    return DATASET_REGISTRY.get(load_cfg(name).DATASET.NAME)


def find(name: str) -> Source:
    """A dataset by its config name; one that is in no table, such as ImageFolder, has no files to get.

    Raises:
        UsageError: there is none of that name.
    """
    names = [file.stem for file in sorted((ROOT / "configs/datasets").glob("*.yaml"))]
    if name not in names:
        called = {source.dataset.__name__.lower(): source.name for source in table().values()}  # DATASET.NAME
        called |= {name: name for name in names}
        near = difflib.get_close_matches(name.lower(), called, 1)
        hint = f"did you mean {called[near[0]]}? " if near else ""
        raise UsageError(f"no dataset {name!r}: {hint}there are {' '.join(names)}")
    kind = dataset_class(name)
    return next((source for source in table().values() if source.dataset is kind), Source(name, kind))


def read_quietly(source: Source, root: Path) -> FewShotDataset:
    """`source.read` without what a dataset prints."""
    with redirect_stdout(io.StringIO()):
        return source.read(root)


def reason(error: DatasetError) -> str:
    """What is wrong, without the command that mends it."""
    return re.sub(r"[:;,]*( delete it, then| or)? get it by: .*", "", str(error))


def problem(source: Source, root: Path) -> tuple[str, list[str]]:
    """What keeps a dataset from being used, if anything does, and its missing images, relative to its folder."""
    try:
        dataset = read_quietly(source, root)
    except DatasetError as error:
        return reason(error), []
    missing = missing_images(dataset)
    return (f"{len(missing)} images are missing, the first {missing[0]}" if missing else ""), missing


def split_images(dataset: FewShotDataset) -> list[str]:
    """Paths of all images of a split, relative to the dataset's folder."""
    start = len(str(dataset.root)) + 1
    return [item.impath[start:] for items in named_images(dataset).values() for item in items]


def missing_images(dataset: FewShotDataset) -> list[str]:
    """Those of `split_images` that are not there; each folder is listed once."""
    listed, missing = {}, []
    for image in split_images(dataset):
        parent, name = os.path.split(image)
        if parent not in listed:
            listed[parent] = names_in(dataset.root / parent)
        if name not in listed[parent]:
            missing.append(image)
    return missing
