"""The model of a method, built in the same way for a run and for predictions, and the precision it
computes in.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from yacs.config import CfgNode

from clip import CLIP, ClipError, image_tower, load_backbone
from common.errors import UsageError

if TYPE_CHECKING:
    from .method import Method

UNITS = {"fp16": "a GPU", "bf16": "a CPU or GPU with bf16 units"}


def assemble_model(method: "Method", towers: str = "fast", clip: CLIP | None = None) -> None:
    """Set `method.model`: the frozen backbone under the prompts that training starts from, on
    `method.device`.

    The prompts are built where the backbone is, on the CPU if it is loaded here. A backbone that is
    on `method.device` already is not moved, so that other models may compute with it meanwhile.

    Args:
        method: of a run, a fit or a prediction.
        towers: the form of the towers, a key of `clip.TOWERS`.
        clip: the backbone, if it is loaded already.

    Raises UsageError if the backbone does not exist, reads images of another size, or does not fit
    the method.
    """
    cfg = method.cfg
    device = method.device
    if clip is None:
        clip = backbone_of(method)
        side = clip.visual.image_size
        expected = tuple(side) if isinstance(side, tuple | list) else (side, side)
        if tuple(cfg.INPUT.SIZE) != expected:
            fault = (
                f"INPUT.SIZE is {tuple(cfg.INPUT.SIZE)}, but {cfg.MODEL.BACKBONE.NAME} reads "
                f"{expected}"
            )
            raise UsageError(fault, "give that as INPUT.SIZE, or a YAML for this backbone")
    with clip.logit_scale.device:
        prompts = method.build_prompts(clip, method.class_names)
    method.model = method.Model(clip, prompts, towers)
    if clip.logit_scale.device.type != device.type:
        method.model.to(device)
    method.finish_model()


def backbone_of(method: "Method") -> CLIP:
    """The backbone of a method, from its file, in the precision that PREC means here."""
    precision = usable(method.settings.PREC, method.device)
    name = method.cfg.MODEL.BACKBONE.NAME
    return load_backbone(name, "fp32" if precision == "amp" else precision)


def require_vit(clip: CLIP, method: str, backbone: str) -> None:
    """Raise UsageError for a backbone whose image tower takes no prompts, such as a ResNet."""
    try:
        image_tower(clip)
    except ClipError as error:
        fault = (
            f"{method} needs a vision transformer such as ViT-B/16, and {backbone} is not one "
            f"({error.fault})"
        )
        remedy = (
            "choose another, or a method of texts or features, such as CoOp, KgCoOp, TaskRes "
            "or TipAdapterF"
        )
        raise UsageError(fault, remedy) from error


def usable(precision: str, device: torch.device) -> str:
    """The precision of PREC on a device; fp32 where the device does not multiply faster in fp16 or
    bf16.
    """
    if precision not in UNITS:
        return precision
    if device.type == "cpu":
        has_units = precision == "bf16" and cpu_has_bf16()
    else:
        has_units = precision == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
    return precision if has_units else "fp32"


def cpu_has_bf16() -> bool:
    """Whether the CPU has instructions for products of bf16 (AVX512-BF16, AMX or Arm's), as Linux
    lists them.
    """
    info = Path("/proc/cpuinfo")
    return info.is_file() and bool(re.search(r"\b(avx512_|amx_)?bf16\b", info.read_text()))


def print_backbone(cfg: CfgNode, clip: CLIP, precision: str, device: torch.device) -> None:
    """Print what PREC means on the device, and which values of the images' normalisation the
    backbone did not have.
    """
    if precision in UNITS and usable(precision, device) == precision:
        print(f"PREC {precision}: training and evaluation compute in {precision}")
    elif precision in UNITS:
        print(f"PREC {precision} needs {UNITS[precision]}: computing in fp32")
    for key, attribute in (("PIXEL_MEAN", "image_mean"), ("PIXEL_STD", "image_std")):
        trained = getattr(clip.visual, attribute, None)
        if trained and any(abs(a - b) > 1e-6 for a, b in zip(trained, cfg.INPUT[key], strict=True)):
            print(
                f"INPUT.{key} is {cfg.INPUT[key]}, {cfg.MODEL.BACKBONE.NAME} was trained with "
                f"{list(trained)}"
            )
