"""Options, settings, keys and commands that an older version had, and what to do instead."""

from typing import Any

RULES = "herding", "pseudo", "typical-then-uncertain", "typiclust", "uherding"  # of label.py
REMOVED = {
    "BANK": "set CACHE, which keeps the features of a run; fit reads a bank",
    "FEATURES_OF": "embed the images by that run, then fit a head on the features",
    "TEST.CORRUPTION": "make a folder of corrupted images, and test on it as a dataset",
    **dict.fromkeys(RULES, "leave --method out: no rule was better than the default"),
    "splits": "prepare.py fewshot prints the images of a run, or of CoOp's .pkl",
    "mlflow": "use wandb, or read TensorBoard's files",
    "random_clip": "--backbone small needs no download",
    "--base": "compare the state_dicts of clip.load_backbone",
    "--pool": "label images that label.py chooses; predict --transductive reads the others",
    "fit --classes": "label some images of each class, or predict by names alone (zero-shot)",
    "fit --sets": "label images apart, and run calibrate.py on them, or MAPIE over Classifier",
    "--peft open_clip": "leave open_clip out: the adapter is for the CLIP of transformers",
    "LABELLED": "fit the images again",
    "merge": "average seeds by the tables of a study; FineTune has WISE_FT, PEFT its own merging",
}

# Options by their words before this release, which the next one refuses
RENAMED = {
    "--ask": "--count",
    "--coverage-by": "--coverage",
    "--look": "--near-copies",
    "--together": "--transductive",
}

# Values of removed settings that did nothing
WITHOUT_EFFECT = {"BANK": "", "CORRUPTION": "", "SEVERITY": 5, "FEATURES_OF": "", "LABELLED": 0}


def instead_of(word: object) -> str:
    """`X was removed: what to do instead`, or an empty string for a word that was none. A setting
    may have its group in front, such as `TRAINER.LINEARPROBE.FEATURES_OF`.
    """
    name = str(word)
    remedy = REMOVED.get(name) or REMOVED.get(name.rpartition(".")[2])
    return f"{name} was removed: {remedy}" if remedy else ""


def had_no_effect(name: str, value: Any) -> bool:
    """Whether a setting of an older run was removed, and did nothing in that run."""
    last = name.rpartition(".")[2]
    return last in WITHOUT_EFFECT and WITHOUT_EFFECT[last] == value
