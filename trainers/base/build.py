"""The model of a method, built in the same way for a run and for predictions."""

from typing import TYPE_CHECKING, Any

import torch
from yacs.config import CfgNode

from clip import CLIP, BlockAdapter, WithAdded, is_vit, load_backbone
from common.errors import UsageError

from .precision import usable
from .prompted import PromptedCLIP

if TYPE_CHECKING:
    from .trainer import PromptTrainer


def build_model(method: "PromptTrainer", towers: str = "fast", clip: CLIP | None = None) -> None:
    """Set `method.model`: the frozen backbone under the prompts that training starts from, on `method.device`.

    The prompts are built where the backbone is, on the CPU if it is loaded here. A backbone that is on `method.device`
    already is not moved, so that other models may compute with it meanwhile.

    Args:
        method: the trainer of a run, or what `without_training` returns.
        towers: the form of the towers, a key of `clip.TOWERS`.
        clip: the backbone, if it is loaded already.

    Raises:
        UsageError: the backbone does not exist, reads images of another size, or does not fit the method.
    """
    cfg, device = method.cfg, method.device
    if clip is None:
        precision = usable(method.settings.PREC, device)
        clip = load_backbone(cfg.MODEL.BACKBONE.NAME, "fp32" if precision == "amp" else precision)
        side = clip.visual.image_size
        expected = tuple(side) if isinstance(side, tuple | list) else (side, side)
        if tuple(cfg.INPUT.SIZE) != expected:
            what = f"INPUT.SIZE is {tuple(cfg.INPUT.SIZE)}, but {cfg.MODEL.BACKBONE.NAME} reads {expected}"
            raise UsageError(what, "give that as INPUT.SIZE, or a YAML for this backbone")
    with clip.logit_scale.device:
        prompts = method.build_prompts(clip, method.class_names)
    method.model = method.Model(clip, prompts, towers)
    check_registered(method.model)
    if clip.logit_scale.device.type != device.type:
        method.model.to(device)
    method.finish_model()


def without_training(
    method: type["PromptTrainer"], cfg: CfgNode, class_names: list[str], dataset_template: str, device: torch.device
) -> "PromptTrainer":
    """A method for predictions: it has no images, no optimiser and no settings of training.

    Args:
        method: its class.
        cfg: the sections DATASET (NAME and TEMPLATE), INPUT, MODEL (BACKBONE.NAME) and TRAINER of a configuration.
        class_names, dataset_template, device: as those of a trainer.
    """
    bare = method.__new__(method)  # not `method(cfg)`, which reads a dataset and builds an optimiser
    bare.__dict__.update(cfg=cfg, class_names=class_names, dataset_template=dataset_template, device=device)
    return bare


def require_vit(clip: CLIP, method: str, backbone: str) -> None:
    """Raise UsageError for a backbone whose image tower takes no prompts, such as a ResNet."""
    if not is_vit(clip):
        what = f"{method} needs a vision transformer such as ViT-B/16, and {backbone} is not one"
        raise UsageError(what, "choose another")


def print_normalisation(cfg: CfgNode, clip: CLIP) -> None:
    """Print which values of the images' normalisation the backbone was not trained with."""
    for key, attribute in (("PIXEL_MEAN", "image_mean"), ("PIXEL_STD", "image_std")):
        own = getattr(clip.visual, attribute, None)
        if own and any(abs(a - b) > 1e-6 for a, b in zip(own, cfg.INPUT[key], strict=True)):
            print(f"INPUT.{key} is {cfg.INPUT[key]}, {cfg.MODEL.BACKBONE.NAME} was trained with {list(own)}")


def check_registered(model: PromptedCLIP) -> None:
    """Raise UsageError for a tensor in a method's private copy of the backbone that is not in the prompt learner."""
    known = {id(tensor) for part in (model, model.frozen) for tensor in (*part.parameters(), *part.buffers())}
    changes = (
        getattr(module.change, "__self__", module.change)
        for module in model.clip.modules()
        if isinstance(module, WithAdded)
    )
    parts: list[Any] = [model.clip, *(adapter for adapter, _ in adapters_of(model.clip)), *changes]
    for part in parts:
        for name, tensor in (*part.named_parameters(), *part.named_buffers()) if hasattr(part, "modules") else ():
            if id(tensor) not in known:
                what = f"{type(model.prompt_learner).__name__}.install adds {type(part).__name__}.{name}"
                raise UsageError(
                    f"{what}, which is not in the prompt learner", "make it there: else it is neither trained nor saved"
                )


def adapters_of(clip: CLIP) -> list[tuple[BlockAdapter, int]]:
    """The adapters in the blocks of a CLIP, each with the width of its tokens."""
    found = ((getattr(module, "adapter", None), module) for module in clip.modules())
    return [
        (adapter, module.ln_1.normalized_shape[0]) for adapter, module in found if isinstance(adapter, BlockAdapter)
    ]
