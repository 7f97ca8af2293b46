"""The settings that a prediction depends on: those of a method, and those of zero-shot CLIP on a
backbone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dassl.config import get_cfg_default
from yacs.config import CfgNode

import datasets
import trainers
from clip import CLIP, OF_CLIP, preprocessing
from common.errors import check_name
from configs.methods import IN_A_FILE

from .artefact import Description


def configuration(method: str, where: Path | None = None) -> CfgNode:
    """The configuration of a method, which the file `where` names, to be merged with values of any
    key of training.
    """
    check_name(method, trainers.predicting(), "method", where, IN_A_FILE)
    cfg = get_cfg_default()
    datasets.extend_cfg(cfg)
    trainers.extend_cfg(cfg, method)
    cfg.set_new_allowed(True)
    for section in (cfg.INPUT, cfg.TRAINER[trainers.predicting()[method].section()]):
        section.set_new_allowed(False)
    cfg.TRAINER.NAME = method
    return cfg


def zero_shot_description(
    clip: CLIP,
    backbone: str,
    class_names: Sequence[str],
    template: str,
    sentences: dict[str, list[str]],
) -> Description:
    """Zero-shot CLIP: `template` has {} for the class name; a class with `sentences` has these
    instead.

    Images are read as the preprocessing of the backbone says.
    """
    size = clip.visual.image_size
    image: dict[str, Any] = {"SIZE": list(size) if isinstance(size, tuple | list) else [size, size]}
    for key, attribute in {"PIXEL_MEAN": "image_mean", "PIXEL_STD": "image_std"}.items():
        if values := getattr(clip.visual, attribute, None):
            image[key] = list(values)
    image = OF_CLIP | preprocessing(backbone) | image | {"TRANSFORMS": ["normalize"]}
    image |= {key: list(value) for key, value in image.items() if isinstance(value, tuple)}
    texts: dict[str, Any] = {"template": template, "sentences": sentences}
    return Description(
        "ZeroshotCLIP", {"PREC": "fp32"}, image, backbone, class_names=list(class_names), **texts
    )
