"""Which images a run learns from, chooses on (an epoch, a setting) and is tested on:
`common.records`.
"""

import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from yacs.config import CfgNode

from common.errors import UsageError
from common.files import checksum
from common.records import ImageList, Phase, SelectionRecord, read
from common.results import digest_of_rows

Record = TypeVar("Record", bound=ImageList)
# Methods are comparable if they see the same data besides labelled images and class names: the
# kinds of methods. Those of "test-time" learn from each test image alone, those of "transductive"
# from several.
METHOD_KINDS = ("inductive", "test-time", "transductive", "extra text", "larger teacher")
TRAINING = "training"  # instead of a setting, where a training image is a test image


def choice(
    what: str,
    cfg: CfgNode,
    title: str,
    images: Sequence[Any],
    dataset: Any,
    trials: int | None = None,
) -> SelectionRecord:
    """A choice between `trials` epochs or values by `images` of a dataset.

    Args:
        what: `epoch`, or the key of a setting.
        cfg: of the run.
        title: the name of the dataset in results.
        images: those that decide, each with an `impath`.
        dataset: the dataset as it was loaded.
        trials: how many epochs or values it chooses from, if that is known.
    """
    validation = dataset.val and (images is not dataset.test or images is dataset.val)
    listed = list_facts(cfg, title, "val" if validation else "test", images)
    return SelectionRecord(
        what=what, **listed, test_images=count_tested(images, dataset), trials=trials
    )


def list_facts(cfg: CfgNode, title: str, split: str, images: Sequence[Any]) -> dict[str, Any]:
    """What every record says of its images."""
    return {
        "dataset": title,
        "classes": cfg.DATASET.get("SUBSAMPLE_CLASSES", "all"),
        "split": split,
        "images": len(images),
        "sha256": list_digest(images, cfg.DATASET.ROOT),
    }


def fit_phase(cfg: CfgNode, title: str, dataset: Any, classes: int) -> Phase:
    """The record of learning from the training images of a dataset, all of which are used with
    their labels.
    """
    facts = (
        list_facts(cfg, title, "train", dataset.train_x)
        | getattr(dataset, "fewshot_file", {})
        | getattr(dataset, "noise", {})
        | text_facts(cfg)
    )
    return Phase(**facts, labels=len(dataset.train_x), class_names=classes)


def text_facts(cfg: CfgNode) -> dict[str, Any]:
    """The name and the checksum of the file of a run's sentences; {} without one."""
    name = os.path.basename(cfg.DATASET.get("SENTENCES", ""))
    return {"sentences": name, "sentences_sha256": cfg.DATASET.SENTENCES_SHA256} if name else {}


def list_digest(images: Sequence[Any], root: str) -> str:
    """The SHA-256 of a list of images: `path NUL label NUL class name LF` of each, in order, in
    UTF-8.

    Paths are relative to the folder of the datasets, so that it does not matter where that is.
    """
    labels = [item.label for item in images]
    names = [item.classname for item in images]
    return digest_of_rows(zip(relative_paths(images, root), labels, names, strict=True))


def relative_paths(images: Sequence[Any], root: str) -> list[str]:
    """The path of each image below the folder of the datasets; empty for images that are not
    files.
    """
    folder = os.path.abspath(os.path.expanduser(root))
    return [relative(item.impath, folder) if item.impath else "" for item in images]


def relative(path: str, folder: str) -> str:
    """As `os.path.relpath`, and several times as fast for a path below an absolute folder."""
    absolute = os.path.abspath(path)
    return (
        absolute.removeprefix(f"{folder}/")
        if absolute.startswith(f"{folder}/")
        else os.path.relpath(path, folder)
    )


def selections_of_run(cfg: CfgNode, title: str, dataset: Any) -> list[SelectionRecord]:
    """What can raise the accuracy of a run on its test images: training on some of them, and the
    choice of the epoch by TEST.FINAL_MODEL best_val."""
    choices = []
    train = [] if getattr(dataset, "test_only", False) else dataset.train_x
    if tested := count_tested(train, dataset):
        choices.append(
            SelectionRecord(
                what=TRAINING, **list_facts(cfg, title, "train", train), test_images=tested
            )
        )
    if cfg.TEST.FINAL_MODEL == "best_val" and not cfg.TEST.NO_TEST:
        images = dataset.val or dataset.test  # the trainer validates on these
        choices.append(choice("epoch", cfg, title, images, dataset, cfg.OPTIM.MAX_EPOCH))
    return choices


def count_tested(images: Sequence[Any], dataset: Any) -> int:
    """How many of the images are test images of the dataset, by their paths or by the content of
    their files.

    The content does not count in a published or a synthetic dataset, which is used as it is.
    """
    by_path = count_common(images, dataset.test)
    as_it_is = getattr(dataset, "counts", None) or getattr(dataset, "is_synthetic", False)
    return by_path if as_it_is else max(by_path, count_copies(images, dataset.test))


def count_copies(images: Sequence[Any], others: Sequence[Any]) -> int:
    """How many of the images have the same file content as one of the others."""
    files = (
        [item.impath for item in items if os.path.isfile(item.impath)] for items in (images, others)
    )
    sizes, other_sizes = ({path: os.path.getsize(path) for path in paths} for paths in files)
    equal = {*sizes.values()} & {*other_sizes.values()}  # other files need not be read
    known = {checksum(Path(path)) for path, size in other_sizes.items() if size in equal}
    return sum(checksum(Path(path)) in known for path, size in sizes.items() if size in equal)


def count_common(images: Sequence[Any], others: Sequence[Any]) -> int:
    """How many of the images are also among the others, by their path; a link counts as the file it
    leads to.
    """
    if images is others:
        return len(images)
    # That of a few folders takes no time, that of each file takes a second
    folders = cache(os.path.realpath)

    def real(path: str) -> str:
        folder, name = os.path.split(path)
        return os.path.realpath(path) if os.path.islink(path) else f"{folders(folder)}/{name}"

    known = {real(item.impath) for item in others if item.impath}
    return sum(real(item.impath) in known for item in images if item.impath)


def selections_using_test_images(
    choices: Sequence[SelectionRecord] | None,
) -> list[SelectionRecord]:
    """The choices that test images took part in."""
    return [choice for choice in choices or () if choice.test_images]


def check_choices(choices: Sequence[SelectionRecord]) -> None:
    """Check that no test image takes part in a choice. Raises UsageError if one does."""
    for choice in selections_using_test_images(choices):
        if choice.what == TRAINING:
            instead = "use each image once (tools/prepare.py --check lists them)"
        elif choice.what == "epoch":
            instead = "set TEST.FINAL_MODEL last_step"
        elif choice.by:
            instead = "leave out --chosen"
        elif choice.split == "test":
            instead = f"leave out {choice.what.rpartition('.')[0]}.CHOOSE_ON oracle"
        else:
            instead = f"set {choice.what}"
        remedy = f"{instead}, or accept it by TEST.SELECT_ON_TEST True, which marks the results"
        raise UsageError(selection_text(choice), remedy)


def selection_text(choice: SelectionRecord) -> str:
    """A choice in words."""
    if choice.what == TRAINING:
        return (
            f"{choice.test_images:,} of {choice.images:,} training images of {choice.dataset} "
            "are test images"
        )
    chosen = "the epoch" if choice.what == "epoch" else choice.what
    of_test = (
        "all of them" if choice.test_images == choice.images else f"{choice.test_images:,} of them"
    )
    lacking = (
        ", which has no validation images"
        if choice.split == "test" and chosen == "the epoch"
        else ""
    )
    classes = "" if choice.classes == "all" else f" ({choice.classes} classes)"
    text = (
        f"{chosen} is chosen on {choice.images:,} images, {of_test} test images of {choice.dataset}"
    )
    return f"{text}{classes}{lacking}"


def inherited(
    checkpoint: Mapping[str, Any],
) -> tuple[list[SelectionRecord] | None, list[Phase] | None]:
    """The choices behind the prompts in a checkpoint (`checkpoints.is_checkpoint`), and what they
    were learned from.

    Each is None if the checkpoint does not say it. Only the epoch of the best on validation images
    was chosen.
    """
    metadata = checkpoint.get("metadata") or {}
    is_best = checkpoint.get("val_result") is not None
    new = [choice for choice in metadata.get("choices", []) if choice["what"] != "epoch" or is_best]
    behind = [*metadata.get("inherited_choices", []), *new]
    # Else the run began from prompts that do not name their choices
    says_start = "inherited_choices" in metadata
    choices = (
        [read(SelectionRecord, choice) for choice in behind]
        if "choices" in metadata and (behind or says_start)
        else None
    )
    phases = metadata.get("fit") if says_start else None
    return choices, None if phases is None else [read(Phase, phase) for phase in phases]


def joined(*parts: Sequence[Record] | None) -> list[Record] | None:
    """The records behind several parts of a model; None if some do not say theirs, and the others
    have none.
    """
    known = [record for part in parts for record in part or ()]
    return known if known or None not in parts else None
