"""Which images a test has read, and the list of all tests in an output folder."""

import json
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from common.version import made
from trainers.base import data_use

TESTS = "tests.jsonl"  # a line for each test that ended
MOST_TESTS = 1 << 20  # lines


def tested_images(cfg: Any, trainer: Any) -> tuple[str, list]:
    """The split of the last test, and its images: in the order of the dataset's list, also if a
    method has another.
    """
    split = trainer.test_split
    read_items = images_of(trainer, split)
    listed = images_of(trainer.dm, split)
    return split, listed if set(map(id, listed)) == set(map(id, read_items)) else read_items


def images_of(owner: Any, split: str) -> list:
    """The images of a split in the order in which a trainer, or its data manager, reads them."""
    return (owner.val_loader if split == "val" else owner.test_loader).dataset.data_source


def note_test(cfg: CfgNode, trainer: Any, results: dict[str, float]) -> None:
    """Add a test to the list of all tests in the output folder, those of earlier starts among
    them.
    """
    split, items = tested_images(cfg, trainer)
    sha256 = data_use.list_digest(items, cfg.DATASET.ROOT)
    test = {"date": made()["date"], "split": split, "images": len(items), "sha256": sha256}
    file = Path(cfg.OUTPUT_DIR, TESTS)
    # By the end of a process that wrote
    is_torn = file.is_file() and not file.read_bytes().endswith(b"\n")
    line = json.dumps(test | {"accuracy": next(iter(results.values()))})
    with open(file, "a", encoding="utf-8") as lines:
        if is_torn:
            lines.write("\n")
        lines.write(line + "\n")


def tests_of(folder: Path, sha256: str) -> int:
    """How many tests of the images with this checksum have ended in an output folder."""
    file = folder / TESTS
    if not file.is_file():
        return 0
    with open(file, encoding="utf-8", errors="replace") as lines:
        return sum(
            f'"sha256": "{sha256}"' in line
            for line, _ in zip(lines, range(MOST_TESTS), strict=False)
        )
