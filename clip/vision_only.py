"""Image towers of timm as backbones, `timm:NAME` or `timm:NAME:FILE`: they have no text tower, so
that only methods which read no class names can use them.
"""

import os
from pathlib import Path
from typing import Any

import timm
import torch
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from common.errors import UsageError, closest, one_line
from common.names import printable

from . import hub
from .building import CLIP, NO_TEXT, fill, set_statistics
from .errors import ClipError
from .tokenizer import Tokenizer, tokenizer_of
from .weights import read_state_dict, regular_file

PREFIX = "timm:"
LEAST_VISION = {"layers": 1, "width": 64, "image_size": 16, "patch_size": 16}
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


class NoTexts(Tokenizer):
    """In the place of a tokeniser; UsageError for every text."""

    name = "none"

    def __init__(self, backbone: str):
        super().__init__(1)
        self.backbone = backbone

    def __call__(self, texts: list[str], truncate: bool = False) -> Tensor:
        fault = f"{self.backbone} has no text tower, and reads no class names"
        remedy = "choose a CLIP; or fit it by tools/fit.py, which tries heads without texts"
        raise UsageError(fault, remedy)


def reads_texts(clip: CLIP) -> bool:
    """Whether a backbone has a text tower."""
    return not isinstance(tokenizer_of(clip), NoTexts)


def without_texts(visual: Any, backbone: str) -> CLIP:
    """A frozen CLIP with this image tower, which says its `output_dim` and its `image_size`, and
    without a text tower.
    """
    clip = CLIP(1, LEAST_VISION, NO_TEXT)
    clip.visual = visual
    clip.tokenizer = NoTexts(backbone)
    return clip.eval().requires_grad_(False)


def parts(name: str) -> tuple[str, str]:
    """The model and the file of a name; the file is empty if it has none.

    Raises:
        ClipError: timm has no such model.
    """
    model, _, file = name.removeprefix(PREFIX).partition(":")
    if timm.get_pretrained_cfg(model) is None:
        near = closest(model, timm.list_models())
        remedy = f"did you mean {PREFIX}{near}?" if near else "timm.list_models() names all"
        raise ClipError(f"timm has no model {printable(model)!r} with a configuration", remedy)
    return model, file


def weight_file(name: str, cache: str | None) -> Path:
    """The file of the name, or the published one, which is downloaded if it is not there."""
    model, file = parts(name)
    if file:
        return regular_file(os.path.expanduser(file))
    config: Any = timm.get_pretrained_cfg(model)
    remedy = f"give a file with these weights: {PREFIX}{model}:FILE"
    if not config.hf_hub_id:
        raise ClipError(f"timm names no repository with weights of {model}", remedy)
    return hub.hub_file(config.hf_hub_id, hub.WEIGHTS, cache, remedy)


def configuration(name: str) -> dict[str, Any]:
    """How timm says that the images are read, in open_clip's form; the shorter side becomes that of
    the model, and no border is cut off.
    """
    config: Any = timm.get_pretrained_cfg(parts(name)[0])
    known = {"mean": config.mean, "std": config.std, "interpolation": config.interpolation}
    size = list(config.input_size[1:])
    return {"model_cfg": {"vision_cfg": {"image_size": size}}, "preprocess_cfg": known}


@torch.no_grad()
def build(name: str, path: Path, precision: str) -> CLIP:
    """The image tower with the weights of a file, by timm's names; a classifier in it is left out.

    Raises:
        ClipError: a tensor is missing, is one too many, or has another shape.
    """
    model, _ = parts(name)
    state = read_state_dict(path)
    config = configuration(name)
    size = tuple(config["model_cfg"]["vision_cfg"]["image_size"])
    with torch.random.fork_rng(devices=[]):
        visual: Any = TimmModel(model, 1, size, pool="", proj="linear")
    visual.head = nn.Sequential()
    try:
        fill_trunk(visual.trunk, state)
    except (KeyError, ValueError) as error:
        fault = f"{path} does not have the weights of timm's {model} ({one_line(error)})"
        raise ClipError(fault, "give another file") from error
    visual.eval()
    visual.output_dim = visual(torch.zeros(1, 3, *size)).shape[1]
    clip = without_texts(visual.to(HALF.get(precision)), name)
    set_statistics(clip, config["preprocess_cfg"])
    return clip


def fill_trunk(trunk: Any, state: dict[str, Tensor]) -> None:
    """Copy the tensors of a file to a model without its classifier.

    Raises:
        KeyError: one is missing; ValueError: one is too many, or as for `fill`.
    """
    classifiers = trunk.pretrained_cfg.get("classifier") or ()
    names = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    for key, weight in trunk.state_dict().items():
        if key not in state:
            raise KeyError(f"{key} is missing")
        fill(key, weight, state.pop(key))
    others = [key for key in state if not key.startswith(tuple(f"{one}." for one in names))]
    if others:
        raise ValueError(f"it has more tensors than this model, such as {min(others)}")
