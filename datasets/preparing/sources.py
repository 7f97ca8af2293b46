"""The datasets that can be prepared or checked, by the name of their YAML file in
configs/datasets.
"""

import io
import shlex
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from yacs.config import CfgNode

from common.errors import UsageError, check_dataset_name
from common.start import ROOT

from .. import extend_cfg
from ..base import FewShotDataset, Items
from ..files import File


@dataclass(frozen=True)
class DatasetSource:
    """A dataset class under the name that users type."""

    name: str
    dataset: type[FewShotDataset]

    @property
    def files(self) -> tuple[File, ...]:
        """Files to download; none for the user's own images or a synthetic dataset."""
        return getattr(self.dataset, "files", ())

    def folder(self, root: Path) -> Path:
        return root / self.dataset.dataset_dir

    def command(self, root: Path) -> str:
        """The command that prepares it."""
        return f"python tools/prepare.py {self.name} --root {shlex.quote(str(root))}"

    def read(
        self, root: Path, *options: str, images: bool = False, seed: int = 1
    ) -> FewShotDataset:
        """The dataset as a run sees it. Its images need not exist, unless it is split by folders.

        Raises:
            DatasetError: its split cannot be read.
            UsageError: it is not a FewShotDataset.
        """
        if not issubclass(self.dataset, FewShotDataset):
            fault = f"{self.dataset.__name__} is not a FewShotDataset (datasets/base.py)"
            raise UsageError(fault, "only those can be checked")
        return self.dataset(load_cfg(self.name, root, seed, options), images=images)

    def read_quietly(self, root: Path) -> FewShotDataset:
        """`read` without the messages that a dataset prints."""
        with redirect_stdout(io.StringIO()):
            return self.read(root)


def names() -> list[str]:
    """Names of the YAML files in configs/datasets, sorted."""
    return sorted(file.stem for file in (ROOT / "configs/datasets").glob("*.yaml"))


def downloadable() -> dict[str, DatasetSource]:
    """Every dataset with files to download, by name."""
    datasets = map(DATASET_REGISTRY.get, DATASET_REGISTRY.registered_names())
    by_name = {
        dataset.config_name: dataset for dataset in datasets if getattr(dataset, "files", ())
    }
    return {name: DatasetSource(name, by_name[name]) for name in names() if name in by_name}


def find(name: str) -> DatasetSource:
    """A dataset by the name of its YAML file. Raises UsageError if there is no such file."""
    check_dataset_name(name, names())
    dataset = DATASET_REGISTRY.get(load_cfg(name).DATASET.NAME)
    return next(
        (source for source in downloadable().values() if source.dataset is dataset),
        DatasetSource(name, dataset),
    )


def load_cfg(
    name: str, root: Path | None = None, seed: int = 1, options: Sequence[str] = ()
) -> CfgNode:
    """The configuration of a dataset: Dassl's defaults, its YAML file (with any keys), then KEY,
    VALUE, ... pairs.
    """
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.set_new_allowed(True)
    cfg.merge_from_file(str(ROOT / "configs/datasets" / f"{name}.yaml"))
    cfg.merge_from_list(list(options))
    cfg.DATASET.ROOT = "" if root is None else str(root)
    cfg.SEED = seed
    cfg.freeze()
    return cfg


def images_by_split(dataset: FewShotDataset) -> dict[str, Items]:
    """The images for `train`, `val` and `test`. A validation set that is the test set counts
    once.
    """
    train = [] if dataset.test_only else dataset.train_x
    return {
        "train": train,
        "val": [] if dataset.val_is_test else dataset.val or [],
        "test": dataset.test,
    }


def image_paths(dataset: FewShotDataset) -> list[str]:
    """Paths of all images."""
    return [item.impath for items in images_by_split(dataset).values() for item in items]
