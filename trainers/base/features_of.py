"""FEATURES_OF: the trained run whose features a head reads."""

from typing import TYPE_CHECKING

from dassl.utils import load_checkpoint
from yacs.config import CfgNode

from common.errors import UsageError

from .build import assemble_model
from .checkpoints import find_checkpoint, is_checkpoint
from .head import HeadCLIP
from .method import Classes, Method
from .plugin import registered

if TYPE_CHECKING:
    from .feature_method import FeatureMethod


def open_features_run(head: "FeatureMethod", folder: str, key: str) -> tuple[Method, str]:
    """The method of the run in a folder with its learned prompts, for the classes of `head`, and
    their checkpoint.

    `key` is the setting that names the folder. Raises UsageError if there is none, or it has other
    weights or no prompts for these classes.
    """
    try:
        path = find_checkpoint(folder, "", None, "trained")
    except UsageError as error:
        raise UsageError(
            error.what, error.remedy.replace("check --model-dir", f"check {key}"), error.where
        ) from error
    checkpoint = load_checkpoint(path)
    name = (checkpoint.get("metadata") or {}).get("method", "") if is_checkpoint(checkpoint) else ""
    kind = features_method(head, name, path)
    cfg = head.cfg.clone()
    cfg.defrost()
    cfg.TRAINER[kind.section()] = CfgNode(checkpoint["metadata"].get("settings", {}))
    base = kind(cfg, Classes(head.class_names, head.dataset_template, head.sentences), head.device)
    assemble_model(base, cfg.MODEL.BACKBONE.get("TOWERS", "fast"), head.model.frozen)
    base.checkpoints.load(checkpoint, path)
    print(f"Features of {name}, {path} (epoch {checkpoint['epoch']})")
    return base, path


def features_method(head: "FeatureMethod", name: str, path: str) -> type[Method]:
    """The method of this name, which has learned the checkpoint `path`. Raises UsageError if a head
    cannot read its features.
    """
    if not name:
        what = f"{path} does not say which method learned its features"
        raise UsageError(what, "give FEATURES_OF another", path)
    kind = registered().get(name)
    if kind is None or issubclass(kind.Model, HeadCLIP):
        why = "learns no features" if kind else "is unknown"
        raise UsageError(
            f"{path} is of {name[:100]}, which {why}", "give FEATURES_OF another", path
        )
    if kind.Model.own_logits or kind.Model.own_output:
        what = (
            f"{name} has its own `output` or `logits`, so that its image features are not all "
            "that it compares"
        )
        raise UsageError(what, "give FEATURES_OF a run of another method", path)
    if head.sentences and not kind.reads_sentences:
        what = (
            f"DATASET.SENTENCES has no effect: the features of {path} are of {name}, which "
            "reads no sentences"
        )
        raise UsageError(what, "leave it out", path)
    return kind
