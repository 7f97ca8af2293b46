"""What differs in published software: Dassl 0.6.3, on which the methods run too, and the
checkpoints of its projects.

Published checkpoints do not say which method made them. It is guessed from the names of the learned
tensors, which each published method states (`published`).
"""

from collections.abc import Callable, Collection
from fnmatch import fnmatchcase
from inspect import signature
from pickle import UnpicklingError
from typing import Any

from dassl.data import transforms
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_checkpoint, read_image
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from yacs.config import CfgNode

from common.errors import UsageError
from common.warm_up import WarmUp

# Settings that the toolbox has and the published Dassl does not; it reads images as they are
# stored.
SETTINGS = {
    "CACHE": "",
    "CACHE_GB": 20.0,
    "INPUT.EXIF_ORIENTATION": False,
    "INPUT.RESIZE_MODE": "shortest",
    "OPTIM.ADAM_EPS": 1e-8,
}
WARMUPS = ("constant", "linear")
# Whether the Dassl that is imported is the published one, not the toolbox
IS_PUBLISHED = not hasattr(TrainerX, "test_outputs")


def add_settings(cfg: CfgNode) -> None:
    """Add the settings of the toolbox that the published Dassl's configuration lacks."""
    for name, default in SETTINGS.items():
        group, _, key = name.rpartition(".")
        (cfg[group] if group else cfg).setdefault(key, default)


def build_transform(cfg: CfgNode, is_train: bool) -> Callable[[Any], Any]:
    """The transform of the section INPUT, without printing its steps, as the published Dassl
    does.
    """
    options: dict[str, Any] = {"is_train": is_train}
    if "verbose" in signature(transforms.build_transform).parameters:
        options["verbose"] = False
    return transforms.build_transform(cfg, **options)


def read_of(images: Any, path: str) -> Any:
    """An image file as a Dassl dataset of images reads it; the published Dassl's has no `read`."""
    return getattr(images, "read", read_image)(path)


def published_optimizer(model: Any, options: CfgNode, groups: Any = None) -> Optimizer:
    """The optimiser of the section OPTIM: the published `build_optimizer` does not read
    ADAM_EPS.
    """
    optimizer = build_optimizer(model, options, groups)
    for group in optimizer.param_groups:
        if "betas" in group:  # of Adam and its variants
            group["eps"] = options.ADAM_EPS
    return optimizer


def published_schedule(optimizer: Optimizer, options: CfgNode) -> LRScheduler:
    """The schedule of the learning rate of the section OPTIM. Its state is plain values.

    The warm-up of the published Dassl fails on torch 2.7 and later. It pickles the optimiser, so
    that torch 2.6 and later refuse to load the checkpoint.
    """
    if options.WARMUP_EPOCH > 0:
        return warmed_up(optimizer, options)
    return build_lr_scheduler(optimizer, options)


def warmed_up(optimizer: Optimizer, options: CfgNode) -> WarmUp:
    """The schedule of the section OPTIM after its warm-up, of 1 epoch or more. Raises UsageError if
    WARMUP_TYPE is unknown.
    """
    if options.WARMUP_TYPE not in WARMUPS:
        fault = f"OPTIM.WARMUP_TYPE is {options.WARMUP_TYPE}"
        raise UsageError(fault, f"give one of {', '.join(WARMUPS)}")
    after = options.clone()
    after.defrost()
    after.WARMUP_EPOCH = 0
    successor = build_lr_scheduler(optimizer, after)
    if not options.WARMUP_RECOUNT:
        # A step there would change the rates that it starts from.
        successor.last_epoch = options.WARMUP_EPOCH
    is_linear = options.WARMUP_TYPE == "linear"
    first = options.WARMUP_MIN_LR if is_linear else options.WARMUP_CONS_LR
    return WarmUp(optimizer, successor, options.WARMUP_EPOCH, first, is_linear)


# By the section OPTIM: (model, OPTIM, groups) -> optimiser, and (optimiser, OPTIM) -> schedule
optimizer_of: Callable[..., Optimizer] = published_optimizer if IS_PUBLISHED else build_optimizer
build_schedule = published_schedule if IS_PUBLISHED else build_lr_scheduler


def read_checkpoint(path: str) -> Any:
    """The content of a checkpoint. Raises UsageError if it cannot be read."""
    try:
        return load_checkpoint(path)
    except (UnpicklingError, EOFError, RuntimeError) as error:  # the toolbox raises none of these
        fault = f"the published Dassl cannot read {path}: it is damaged, or holds objects"
        raise UsageError(fault, "load it with the toolbox of this project", path) from error


def check_resumed(method: str, state: Collection[str]) -> None:
    """Raise UsageError if a resumed run lacks a state: the published Dassl saves none.

    Args:
        method: its name.
        state: the names of what it needs besides the model.
    """
    if state and IS_PUBLISHED:
        fault = f"{method} cannot resume: the published Dassl does not save its {min(state)}"
        raise UsageError(fault, "start again with another OUTPUT_DIR")


def require_stream(method: str) -> None:
    """Raise UsageError on the published Dassl, which tests each image by itself."""
    if IS_PUBLISHED:
        fault = (
            f"{method} depends on the images before, and the published Dassl tests each by itself"
        )
        raise UsageError(fault, "test it with the toolbox of this project")


# Names of the learned tensors in published checkpoints, of methods that share them.
VISION = ("image_encoder.VPT", "image_encoder.transformer.resblocks.*.VPT_shallow")
TWO_TOWERS = ("prompt_learner.ctx", *VISION, "text_encoder.transformer.resblocks.*.VPT_shallow")
COUPLED = ("prompt_learner.ctx", "prompt_learner.proj.*", "prompt_learner.compound_prompts_text.*")


def stated(attribute: str) -> dict[str, tuple[str, ...]]:
    """The `published` or `published_unused` of each method with published checkpoints, by its
    name.
    """
    return {
        name: getattr(method, attribute)
        for name, method in TRAINER_REGISTRY._obj_map.items()
        if getattr(method, "published", ())
    }


def learned(keys: Collection[str], method: str = "") -> list[str]:
    """Those of the names that some published method has learned; the others are the frozen CLIP and
    buffers.

    Without those that the published code of `method`, which loads them, leaves unused.
    """
    unused = stated("published_unused").get(method, ())
    patterns = [pattern for patterns in stated("published").values() for pattern in patterns]
    return [key for key in keys if matches(key, patterns) and not matches(key, unused)]


def other_methods(keys: Collection[str], method: str, expected: Collection[str]) -> list[str]:
    """The methods that tensors with these names are likely from; empty if they may be from
    `method`.

    `expected` are the names of what `method` itself has learned.
    """
    prompts = learned(keys)
    published = stated("published")
    fitting = fitting_methods(prompts)
    fewest = min((len(published[name]) for name in fitting), default=0)
    # One method's prompts can be part of another's, as CoOp's ctx is of CoCoOp's: fewer patterns
    # fit more closely.
    likely = [name for name in fitting if len(published[name]) == fewest]
    has_all = set(expected) <= set(keys) and (method in fitting or method not in published)
    if not prompts or method in likely or has_all:
        return []
    return likely or ["another method"]


def fitting_methods(prompts: Collection[str]) -> list[str]:
    """The methods with published checkpoints that have all of these names of learned tensors."""
    unused = stated("published_unused")
    known = {name: patterns + unused[name] for name, patterns in stated("published").items()}
    return [
        name for name, patterns in known.items() if all(matches(key, patterns) for key in prompts)
    ]


def matches(key: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)
