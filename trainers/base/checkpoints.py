"""Learned prompts in checkpoints: where they are, whose they are, and which tensors to load."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from common import checkpoints
from common.checkpoints import checkpoint_names
from common.errors import UsageError
from common.files import check_folder, checksum
from common.records import Facts, Phase, SelectionRecord, read
from common.text import read_json

from . import compat
from .settings import without_removed

PROMPTS = "prompts.safetensors"  # of an exported folder, which config.json describes
LARGEST_CONFIG = 24 << 20  # bytes: the names of 100,000 classes, and as many sentences
SAME_SETTINGS = "use the settings and the backbone it was trained with"


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """The metadata of a checkpoint, all of which may be missing."""

    method: str = ""
    settings: Facts = field(default_factory=dict)
    backbone: str = ""
    weights_sha256: str = ""
    dataset: str = ""
    class_names: list[str] = field(default_factory=list)
    choices: list[SelectionRecord] = field(default_factory=list)
    inherited_choices: list[SelectionRecord] = field(default_factory=list)
    fit: list[Phase] = field(default_factory=list)
    version: str = ""
    commit: str = ""
    plugin_sha256: str = ""


def find_checkpoint(
    directory: str, folder: str, epoch: int | None, method: str, published_file: str = ""
) -> str:
    """Path of a run's checkpoint; if it has none of this method, of another method's, so that this
    can be named.

    Args:
        directory, folder: output folder of the run, and name of the method's folder of checkpoints
            in it.
        epoch: None for the best on validation or, if there is none, the newest.
        method: for the error.
        published_file: name of the file that the published code writes to the output folder
            instead.

    Raises UsageError if there is no checkpoint.
    """
    if exported := exported_prompts(directory, epoch):
        return exported
    others = []
    if os.path.isdir(directory):
        others = sorted(path.name for path in Path(directory).iterdir() if path.is_dir())
    for place in dict.fromkeys([folder, *others]):
        for name in checkpoint_names(os.path.join(directory, place), epoch):
            path = Path(directory, place, name)
            if path.is_file():
                return str(path)
    if published_file and epoch is None and os.path.isfile(os.path.join(directory, published_file)):
        return os.path.join(directory, published_file)
    check_folder(Path(directory), "there is no folder", "check --model-dir")
    expected = os.path.join(directory, folder, checkpoint_names("", epoch)[0])
    remedy = f"check --model-dir (folders in it: {', '.join(others[:8]) or 'none'})"
    if epoch is not None:
        remedy = other_epochs(os.path.dirname(expected)) or remedy
    raise UsageError(f"no {method} checkpoint {expected}", remedy, expected)


def other_epochs(folder: str) -> str:
    """What to do if a folder has checkpoints of other epochs; empty if it has none."""
    names = reversed(checkpoint_names(folder, None)[1:])
    epochs = dict.fromkeys(name.rpartition("-")[2] for name in names)
    return f"check --load-epoch (epochs there: {', '.join(epochs)})" if epochs else ""


def exported_prompts(directory: str, epoch: int | None) -> str:
    """The prompts in an exported folder; empty for a folder of another kind.

    Raises UsageError for an adapter of PEFT.
    """
    exported = os.path.join(directory, PROMPTS)
    if epoch is None and os.path.isfile(exported):
        return exported
    if os.path.isfile(os.path.join(directory, "adapter_config.json")):
        fault = f"{directory} is an adapter of PEFT"
        raise UsageError(fault, "make it a model by tools/export.py, and give that folder")
    return ""


def check_no_offset(content: dict[str, Any], file: Path) -> None:
    """Raise UsageError for the config.json of an older fit, whose heads knew classes by their names
    alone.
    """
    if content.get("offset"):
        fault = f"{file.parent} adds a number to the logits of classes without images"
        raise UsageError(fault, "fit again, with some images of each class", file)


def described(prompts: str) -> dict[str, Any]:
    """The metadata of the prompts of an exported folder.

    Raises UsageError if its config.json is missing, damaged or of other prompts, or if they were
    chosen on test images: the folder does not say on how many.
    """
    file = Path(prompts).with_name("config.json")
    content = read_json(file, LARGEST_CONFIG)
    if not isinstance(content, dict):
        content = {}
    keys = {key: key for key in ("method", "settings", "backbone", "dataset", "class_names")}
    keys |= {"weights_sha256": "backbone_sha256"}
    metadata = {key: content[name] for key, name in keys.items() if name in content}
    if "method" not in metadata or not is_metadata(metadata):
        raise UsageError(f"{file} is not a description of prompts", "export it again", file)
    check_no_offset(content, file)
    if content.get("prompts_sha256") != checksum(Path(prompts)):
        fault = f"{prompts} is not the file that config.json describes (its SHA-256 differs)"
        raise UsageError(fault, "export it again", prompts)
    training = content.get("training")
    facts = training if isinstance(training, dict) else {}
    if facts.get("selected_on_test"):
        fault = f"{file.parent} was chosen on test images"
        raise UsageError(fault, "give a run, which says on which", file)
    if facts.get("classes_learned") is False:
        metadata["class_names"] = []
    return metadata


def is_checkpoint(content: Any) -> bool:
    """Whether a file's content has the form of a checkpoint: tensors by name, an epoch, and perhaps
    metadata.
    """
    if not checkpoints.is_checkpoint(content):
        return False
    metadata = content.get("metadata")
    return is_metadata({} if metadata is None else metadata)


def is_metadata(metadata: Any) -> bool:
    """Whether it is the metadata of a checkpoint."""
    try:
        read(Metadata, metadata)
    except ValueError:
        return False
    return True


def tensors_of(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint by their names in the module, also if `nn.DataParallel` had
    wrapped it.
    """
    return {key.removeprefix("module."): value for key, value in checkpoint["state_dict"].items()}


def of_other_classes(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """A published checkpoint as one that was learned on other classes than a run's; ours says on
    which.
    """
    written = checkpoint.get("metadata") or {}
    return (
        checkpoint
        if "class_names" in written
        else {**checkpoint, "metadata": {**written, "class_names": []}}
    )


def select_prompts(
    checkpoint: Mapping[str, Any],
    path: str,
    metadata: Mapping[str, Any],
    expected: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The learned tensors in a checkpoint, without the frozen CLIP and the buffers of classes in
    published ones.

    Args:
        checkpoint: what `path` holds: `state_dict` (from `tensors_of`), and `metadata` if this
            project wrote it.
        metadata: the same of the run that loads it (`Checkpoints.metadata`).
        expected: the state dict to fill.

    Raises UsageError if the prompts are another method's, do not fit the settings or the backbone,
    or are not finite.
    """
    state = checkpoint["state_dict"]
    without_removed((checkpoint.get("metadata") or {}).get("settings") or {}, path)
    learned = learned_tensors(checkpoint, path, metadata["method"], expected)
    remedy = SAME_SETTINGS
    if changed := differences(checkpoint.get("metadata") or {}, metadata):
        remedy += f" ({changed})"
    for key, tensor in expected.items():
        check_tensor(key, state, tensor, path, remedy)
    more = [key for key in learned if key not in expected]
    if more:
        fault = f"{path} has prompts beyond these settings, such as {more[0]}"
        raise UsageError(fault, remedy, path)
    return {key: state[key] for key in expected}


def learned_tensors(
    checkpoint: Mapping[str, Any], path: str, method: str, expected: Mapping[str, Tensor]
) -> list[str]:
    """The names of the learned tensors in a checkpoint; UsageError if it is of another method."""
    state = checkpoint["state_dict"]
    written = checkpoint.get("metadata") or {}
    if "method" in written:
        others = [written["method"]] if written["method"] != method else []
        learned = list(state)
    else:
        others = compat.other_methods(state, method, expected)
        learned = compat.learned(state, method)
    if others:
        names = " or ".join(others)
        fault = f"{path} is a checkpoint of {names}, not of {method}"
        raise UsageError(fault, f"test it with --trainer {names}", path)
    return learned


def check_tensor(
    key: str, state: Mapping[str, Tensor], expected: Tensor, path: str, remedy: str
) -> None:
    """Raise UsageError for a tensor of a checkpoint that is missing, not finite, or of another
    shape or kind of numbers than `expected`.
    """
    if key not in state:
        raise UsageError(f"{path} has no {key}", remedy, path)
    found = state[key]
    if found.shape != expected.shape:
        shapes = f"{tuple(found.shape)}, expected is {tuple(expected.shape)}"
        raise UsageError(f"{key} in {path} has shape {shapes}", remedy, path)
    if found.is_floating_point() != expected.is_floating_point():
        raise UsageError(
            f"{key} in {path} is of {found.dtype}, expected is {expected.dtype}", remedy, path
        )
    if not found.isfinite().all():
        remedy = "use the checkpoint of another epoch, or train again"
        raise UsageError(f"{key} in {path} is not finite", remedy, path)


def differences(written: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    """The settings and the backbone of a checkpoint that this run does not have: `N_CTX 2, here
    4`.
    """
    before = {"backbone": written.get("backbone"), **(written.get("settings") or {})}
    now = {"backbone": metadata["backbone"], **metadata["settings"]}
    changed = [
        key for key in before if before[key] is not None and key in now and before[key] != now[key]
    ]
    return ", ".join(f"{key} {before[key]}, here {now[key]}" for key in changed if key != "PREC")
