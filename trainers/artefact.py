"""Learned prompts as a folder to keep and pass on: `prompts.safetensors` and `config.json`.

Such a folder may come from anybody, so nothing in it is trusted: both files are data, every value is checked for its
kind and range, and no path in it is followed.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from dassl.config import get_cfg_default
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from yacs.config import CfgNode

from clip import is_published, weights_sha256
from common.errors import UsageError, choose
from common.files import checksum, replacing, write_text
from common.names import check_known_names, check_template
from common.text import read_json

CONFIG, PROMPTS = "config.json", "prompts.safetensors"
FORMAT = 1
LARGEST_CONFIG = 8 << 20  # bytes: the names of 100,000 classes
# The keys of INPUT that a test's transform reads.
INPUT = ("SIZE", "INTERPOLATION", "PIXEL_MEAN", "PIXEL_STD", "TRANSFORMS", "EXIF_ORIENTATION")
TEST_TRANSFORMS = ("normalize",)  # of INPUT.TRANSFORMS; the others are for training


@dataclass(frozen=True)
class Description:
    """All that the use of learned prompts needs beside their tensors: the content of config.json.

    Attributes:
        method: name of a registered method.
        settings: its keys under TRAINER.<NAME>.
        input: the keys of INPUT that matter for testing: image size, interpolation, normalisation.
        backbone: the name of published weights, or the name of a weight file, without its folder.
        backbone_sha256: of the weight file; empty if it is not known.
        class_names: in the order of the logits; empty if they are not known.
        dataset: name of the dataset that the prompts were learned on.
        dataset_template: its sentence for zero-shot CLIP.
        template: DATASET.TEMPLATE of the run, which replaces that sentence.
        prompts_sha256: of prompts.safetensors.
        training: seed, shots, accuracy, ...: for people.
    """

    method: str
    settings: dict[str, Any]
    input: dict[str, Any]
    backbone: str
    backbone_sha256: str = ""
    class_names: list[str] = field(default_factory=list)
    dataset: str = ""
    dataset_template: str = ""
    template: str = ""
    prompts_sha256: str = ""
    training: dict[str, Any] = field(default_factory=dict)

    def cfg(self, backbone: str, use_cuda: bool) -> CfgNode:
        """The configuration of a run that tests these prompts.

        Args:
            backbone: name or file of the weights.
            use_cuda: whether to compute on a GPU, if there is one.

        Raises:
            UsageError: the method is unknown, or a key or a value cannot work.
        """
        from . import extend_cfg, fill_defaults, methods  # the package imports this module

        choose(self.method, methods(), "method")
        section = methods()[self.method].section()
        cfg = get_cfg_default()
        cfg.DATASET.TEMPLATE = ""
        extend_cfg(cfg, self.method)
        given = {f"TRAINER.{section}.{key}": value for key, value in self.settings.items()}
        given |= {f"INPUT.{key}": value for key, value in self.input.items() if key in INPUT}
        cfg.merge_from_list([item for pair in given.items() for item in pair])
        fill_defaults(cfg, self.method)
        cfg.TRAINER.NAME, cfg.MODEL.BACKBONE.NAME, cfg.USE_CUDA = self.method, backbone, use_cuda
        cfg.DATASET.NAME, cfg.DATASET.TEMPLATE = self.dataset, self.template
        cfg.freeze()
        return cfg

    def backbone_name(self, given: str = "") -> str:
        """The backbone to load: `given` or, if that is empty, the one that the prompts were learned on.

        Raises:
            UsageError: it has other weights, or the prompts were learned on a file of another machine.
        """
        if not given and not is_published(self.backbone):
            raise UsageError(f"the prompts were learned on the weight file {self.backbone!r}", "give it by --backbone")
        name = given or self.backbone
        if self.backbone_sha256 and (sha256 := weights_sha256(name)) != self.backbone_sha256:
            raise UsageError(
                f"the prompts were learned on {self.backbone} with SHA-256 {self.backbone_sha256[:16]}..., "
                f"{name} has {sha256[:16]}...",
                "give the same weights by --backbone",
            )
        return name


def read_artefact(folder: Path) -> tuple[Description, dict[str, Tensor]]:
    """The description and the learned tensors of an artefact.

    Raises:
        UsageError: a file is missing, too large, damaged, or not what config.json says.
    """
    description = read_config(folder / CONFIG)
    file = regular_file(folder / PROMPTS)
    try:
        tensors = load_file(file)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise UsageError(f"{file} is damaged ({error})", "copy or export it again", file) from error
    if description.prompts_sha256 != checksum(file):
        raise UsageError(
            f"{file} is not the file that {CONFIG} describes (its SHA-256 differs)", "export it again", file
        )
    return description, tensors


def write_artefact(folder: Path, description: Description, tensors: Mapping[str, Tensor]) -> Description:
    """Write both files to an existing folder; returns the description with the SHA-256 of the prompts."""
    with replacing(folder / PROMPTS) as partial:
        partial.write_bytes(save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}))
    content = {"format": FORMAT, **asdict(description), "prompts_sha256": checksum(folder / PROMPTS)}
    write_text(folder / CONFIG, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return read_config(folder / CONFIG)


def read_config(file: Path) -> Description:
    """The content of config.json, each value of its kind.

    Raises:
        UsageError: the file is missing, too large, or malformed.
    """
    content = read_json(file, LARGEST_CONFIG)
    try:
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise TypeError(f"its format is not {FORMAT}")
        values = {item.name: content[item.name] for item in fields(Description)}
        for name, kind in get_type_hints(Description).items():
            if not isinstance(values[name], get_origin(kind) or kind):
                raise TypeError(f"{name} is not of the type {getattr(kind, '__name__', kind)}")
        if not all(map(plain, (*values["settings"].values(), *values["input"].values(), *values["training"].values()))):
            raise TypeError("it holds other values than texts, numbers and lists of them")
    except KeyError as error:
        raise UsageError(f"{file} lacks {error}", "export it again", file) from error
    except TypeError as error:
        raise UsageError(f"{file} is not a description of prompts ({error})", "export it again", file) from error
    for template in filter(None, (values["template"], values["dataset_template"])):
        check_template(template, file)
    if values["class_names"]:
        check_known_names(values["class_names"], file)
    return Description(**values)


def plain(value: object) -> bool:
    """Whether a value is None, a text, a finite number, or a list of these."""
    if isinstance(value, list):
        return all(not isinstance(item, list) and plain(item) for item in value)
    return value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


def regular_file(file: Path) -> Path:
    """The file, if it is one: reading a named pipe, for one, would never end.

    Raises:
        UsageError: it is missing, or not a regular file.
    """
    if not file.is_file():
        what = f"{file} is not a regular file" if file.exists() else f"there is no {file}"
        raise UsageError(what, "give a folder that tools/export.py wrote", file)
    return file
