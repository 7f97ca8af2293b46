"""The published datasets that need no code of their own: published.yaml has their facts."""

from pathlib import Path
from typing import Any

import yaml
from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset
from .files import File
from .imagenet import CLASSNAMES, TestFolders

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # each command waits for it
TABLE = yaml.load(Path(__file__).with_suffix(".yaml").read_text(), Loader)


def dataset_of(
    name: str, split: str, archive: dict[str, Any], counts: list[int], **facts: Any
) -> type[FewShotDataset]:
    """The class of a dataset.

    Args:
        split: the Google Drive id of CoOp's split; empty for test images of ImageNet's classes.
        archive: the values of the archive's `File`.
        facts: other attributes of the class.
    """
    base: type[FewShotDataset] = TestFolders
    first = CLASSNAMES
    if split:
        base = FewShotDataset
        facts["split_file"] = f"split_zhou_{name}.json"
        first = File(facts["split_file"], drive=split, about=2_000_000)
    facts |= {"counts": tuple(counts), "files": (first, File(**archive)), "__module__": __name__}
    return type(name, (base,), facts)


for name, facts in TABLE.items():
    DATASET_REGISTRY.register()(dataset_of(name, facts.pop("split", ""), **facts))
