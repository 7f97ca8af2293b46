"""A trained run whose answers another method reads."""

from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from common.errors import UsageError

from .checkpoints import PROMPTS, described, find_checkpoint, is_checkpoint
from .compat import read_checkpoint
from .method import Classes, Method
from .plugin import registered
from .settings import without_removed
from .trainer import assemble_model


def checkpoint_of(folder: str, key: str) -> tuple[dict[str, Any], str]:
    """The checkpoint of the run, or of the exported model, in a folder, and its path.

    `key` is the setting that names the folder. Raises UsageError if there is none.
    """
    try:
        path = find_checkpoint(folder, "", None, "trained")
    except UsageError as error:
        raise UsageError(
            error.fault, error.remedy.replace("check --model-dir", f"check {key}"), error.where
        ) from error
    checkpoint = read_checkpoint(path)
    if Path(path).name == PROMPTS:
        checkpoint["metadata"] = described(path)
    if not is_checkpoint(checkpoint):
        raise UsageError(f"{path} is not a checkpoint of a training run", f"check {key}", path)
    return checkpoint, path


def trained_run(folder: str, key: str) -> tuple[type[Method], dict[str, Any], str]:
    """The method of the run in a folder, its checkpoint, and the path of that.

    `key` is the setting that names the folder. Raises UsageError if there is none.
    """
    checkpoint, path = checkpoint_of(folder, key)
    name = (checkpoint.get("metadata") or {}).get("method", "")
    if not name:
        fault = f"{path} does not say of which method it is"
        raise UsageError(fault, f"give {key} another", path)
    kind = registered().get(name)
    if kind is None:
        raise UsageError(
            f"{path} is of {name[:100]}, which is unknown", f"give {key} another", path
        )
    return kind, checkpoint, path


def load_method_like(
    over: Method, kind: type[Method], checkpoint: dict[str, Any], path: str
) -> Method:
    """A method with what it has learned, on the backbone and for the classes of another one.

    Raises UsageError if it has other weights, or cannot tell these classes.
    """
    if over.sentences and not kind.reads_sentences:
        fault = (
            f"DATASET.SENTENCES has no effect: the features of {path} are of {kind.__name__}, "
            "which reads no sentences"
        )
        raise UsageError(fault, "leave it out", path)
    cfg = over.cfg.clone()
    cfg.defrost()
    settings = without_removed(checkpoint["metadata"].get("settings", {}), path)
    cfg.TRAINER[kind.section()] = CfgNode(settings)
    classes = Classes(over.class_names, over.dataset_template, over.sentences)
    base = kind(cfg, classes, over.device)
    assemble_model(base, cfg.MODEL.BACKBONE.get("TOWERS", "fast"), over.model.frozen)
    base.checkpoints.load_prompts(checkpoint, path)
    return base
