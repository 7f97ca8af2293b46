"""Learned prompts as a folder to keep and pass on: `prompts.safetensors` and `config.json`.

Such a folder may come from anybody, so nothing in it is trusted: both files are data, every value
is checked for its type and range, and no path in it is followed.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from clip import is_known, weights_sha256
from common.errors import UsageError
from common.files import replacing, write_json
from common.records import Facts, read
from common.text import read_bytes, read_json
from trainers.base.checkpoints import LARGEST_CONFIG, PROMPTS, check_no_offset

EXPORT_CONFIG_FILE = "config.json"
NO_NAMES = "give them by --classes or --classes-file (in Python: class_names)"
FORMAT = 1
LARGEST_PROMPTS = 4 << 30  # bytes
# The keys of INPUT that the transform of a test reads. MAX_PIXELS is not one of them: no exported
# folder raises it.
INPUT = (
    "SIZE",
    "INTERPOLATION",
    "RESIZE_MODE",
    "PIXEL_MEAN",
    "PIXEL_STD",
    "TRANSFORMS",
    "EXIF_ORIENTATION",
)


@dataclass(frozen=True)
class Description:
    """What predictions need in addition to the learned tensors: the content of config.json.

    Attributes:
        method: name of a registered method.
        settings: its keys under TRAINER.<NAME>.
        input: the keys of INPUT that matter for testing: image size, interpolation, normalisation.
        backbone: the name of published weights, or the name of a weight file, without its folder.
        backbone_sha256: of the weight file; empty if it is not known (never in an exported folder).
        tokeniser: of the backbone: `CLIP`, or the name of another one.
        class_names: in the order of the logits; empty if they are not known.
        dataset: title of the dataset that the prompts were learned on.
        dataset_template: the dataset's sentence for zero-shot CLIP.
        template: DATASET.TEMPLATE of the run, which replaces the dataset's sentence.
        prompts_sha256: of prompts.safetensors.
        training: seed, shots, accuracy, ...: for people. `classes_learned` is False for a published
            checkpoint, which does not name its classes, if they are others than `class_names`.
        dataset_name: the registered name of that dataset, for which methods have sentences of their
            own.
        sentences: for each class, by its name in the file DATASET.SENTENCES of the run; empty
            without one.
    """

    method: str
    settings: Facts
    input: Facts
    backbone: str
    backbone_sha256: str = ""
    class_names: list[str] = field(default_factory=list)
    dataset: str = ""
    dataset_template: str = ""
    template: str = ""
    prompts_sha256: str = ""
    training: Facts = field(default_factory=dict)
    dataset_name: str = ""
    tokeniser: str = "CLIP"
    sentences: dict[str, list[str]] = field(default_factory=dict)

    def backbone_name(self, given: str = "") -> str:
        """The backbone to load: `given` or, if that is empty, the one that the prompts were learned
        on.

        Raises:
            UsageError: it has other weights, or is a file or a repository that nobody gave.
        """
        if not given and not is_known(self.backbone):
            kind = "repository" if self.backbone.startswith("hf-hub:") else "weight file"
            fault = f"the prompts were learned on the {kind} {self.backbone!r}"
            raise UsageError(fault, "give it by --backbone (in Python: backbone)")
        name = given or self.backbone
        if self.backbone_sha256 and (sha256 := weights_sha256(name)) != self.backbone_sha256:
            fault = (
                f"the prompts were learned on {self.backbone} with SHA-256 "
                f"{self.backbone_sha256[:16]}..., {name} has {sha256[:16]}..."
            )
            raise UsageError(
                fault,
                "give the same weights by --backbone (in Python: backbone), or restore that file",
            )
        return name


def tensors_in(content: bytes, file: Path) -> dict[str, Tensor]:
    """The tensors in the content of a safetensors file; UsageError if it is damaged."""
    try:
        return load(content)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise UsageError(f"{file} is damaged ({error})", "copy or export it again", file) from error


def read_artefact(folder: Path) -> tuple[Description, dict[str, Any]]:
    """The description of an artefact, and its learned tensors in the form of a checkpoint.

    Raises:
        UsageError: a file is missing, too large, damaged, or not what config.json says.
    """
    description = read_config(folder / EXPORT_CONFIG_FILE)
    file = folder / PROMPTS
    content = read_bytes(file, LARGEST_PROMPTS)
    tensors = tensors_in(content, file)
    if description.prompts_sha256 != hashlib.sha256(content).hexdigest():
        fault = f"{file} is not the file that {EXPORT_CONFIG_FILE} describes (its SHA-256 differs)"
        raise UsageError(fault, "export it again", file)
    names = description.class_names if description.training.get("classes_learned", True) else []
    metadata = {
        "method": description.method,
        "settings": description.settings,
        "class_names": names,
    }
    metadata["dataset"] = description.dataset or description.dataset_name
    return description, {"state_dict": tensors, "epoch": 0, "metadata": metadata}


def write_artefact(
    folder: Path, description: Description, tensors: Mapping[str, Tensor]
) -> Description:
    """Write both files to an existing folder; returns the description with the SHA-256 of the
    prompts.

    Raises:
        UsageError: the tensors stand on the features of another run, which the folder would not
            have.
    """
    check_complete(description, "the model")
    content = save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
    with replacing(folder / PROMPTS) as partial:
        partial.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    written = replace(description, prompts_sha256=sha256, input=exported(description.input))
    facts = {"format": FORMAT, **asdict(written)}
    write_json(folder / EXPORT_CONFIG_FILE, facts, ensure_ascii=False)
    return written


def read_config(file: Path) -> Description:
    """The content of config.json, each value of its kind; UsageError if it is missing, too large,
    or malformed.
    """
    content = read_json(file, LARGEST_CONFIG)
    try:
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        description = read(Description, content)
        for sha256 in (description.backbone_sha256, description.prompts_sha256):
            if not re.fullmatch("[0-9a-f]{64}", sha256):
                raise ValueError("a SHA-256 is missing or wrong")
    except ValueError as error:
        fault = f"{file} is not a description of prompts ({error})"
        raise UsageError(fault, "export it again", file) from error
    check_no_offset(content, file)
    check_complete(description, str(file))
    return replace(description, input=exported(description.input))


def exported(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Those of INPUT that a folder holds."""
    return {key: value for key, value in keys.items() if key in INPUT}


def check_complete(description: Description, model: str) -> None:
    """Raise UsageError for a model that needs another run or file: its path would be followed."""
    if path := description.settings.get("WORDS"):
        fault = f"{model} needs the file of words {str(path)[:200]!r}"
        raise UsageError(fault, "predict from its own run")
