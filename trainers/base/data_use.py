"""What a run chooses on images (an epoch, a setting), on which images, and how many of them are test images.

The record of a choice is a dict of plain values, as checkpoints and results.json hold it:

- what: `epoch`, or the key of a setting
- dataset: its name in results
- classes: DATASET.SUBSAMPLE_CLASSES
- split: `val`, or `test` for a dataset without validation images
- images: their number
- test_images: how many of these are test images of the dataset
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from yacs.config import CfgNode

from common.errors import UsageError

Choice = dict[str, Any]
KINDS = {"what": str, "dataset": str, "classes": str, "split": str, "images": int, "test_images": int}


def record(what: str, cfg: CfgNode, title: str, images: Sequence[Any], dataset: Any) -> Choice:
    """The record of a choice.

    Args:
        what: `epoch`, or the key of a setting.
        cfg: of the run.
        title: the name of the dataset in results.
        images: those that decide, each with an `impath`.
        dataset: the dataset as it was loaded.
    """
    return {
        "what": what,
        "dataset": title,
        "classes": cfg.DATASET.get("SUBSAMPLE_CLASSES", "all"),
        "split": "val" if dataset.val else "test",
        "images": len(images),
        "test_images": count_common(images, dataset.test),
    }


def epoch_choice(cfg: CfgNode, title: str, dataset: Any) -> list[Choice]:
    """The choice of TEST.FINAL_MODEL best_val as a list of one record; an empty list for other values."""
    if cfg.TEST.NO_TEST or cfg.TEST.FINAL_MODEL != "best_val":
        return []
    return [record("epoch", cfg, title, dataset.val or dataset.test, dataset)]  # the trainer validates on these


def count_common(images: Sequence[Any], others: Sequence[Any]) -> int:
    """How many of the images are also among the others, by their path; a link counts as the file it leads to."""
    if images is others:
        return len(images)
    known = {os.path.realpath(item.impath) for item in others if item.impath}
    return sum(os.path.realpath(item.impath) in known for item in images if item.impath)


def on_test_images(choices: Sequence[Choice] | None) -> list[Choice]:
    """The choices that test images took part in."""
    return [choice for choice in choices or () if choice["test_images"]]


def check_choices(choices: Sequence[Choice]) -> None:
    """Check that no test image takes part in a choice.

    Raises:
        UsageError: one does.
    """
    for choice in on_test_images(choices):
        instead = "TEST.FINAL_MODEL last_step" if choice["what"] == "epoch" else choice["what"]
        remedy = f"set {instead}, or accept it by TEST.SELECT_ON_TEST True, which marks the results"
        raise UsageError(in_words(choice), remedy)


def in_words(choice: Choice) -> str:
    """A choice in words."""
    what = "the epoch" if choice["what"] == "epoch" else choice["what"]
    number, common = choice["images"], choice["test_images"]
    of_test = "all of them" if common == number else f"{common:,} of them"
    lacking = ", which has no validation images" if choice["split"] == "test" else ""
    classes = "" if choice["classes"] == "all" else f" ({choice['classes']} classes)"
    return f"{what} is chosen on {number:,} images, {of_test} test images of {choice['dataset']}{classes}{lacking}"


def inherited_choices(checkpoint: Mapping[str, Any]) -> list[Choice] | None:
    """The choices behind the prompts in a checkpoint (`checkpoints.is_checkpoint`); None if it does not name them.

    A checkpoint of any other epoch than the best on validation images was not chosen by its epoch.
    """
    metadata = checkpoint.get("metadata") or {}
    if "choices" not in metadata:
        return None
    is_best = checkpoint.get("val_result") is not None
    own = [choice for choice in metadata["choices"] if choice["what"] != "epoch" or is_best]
    behind = [*metadata.get("inherited_choices", []), *own]
    return [{key: choice[key] for key in KINDS} for choice in behind]
