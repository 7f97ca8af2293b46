"""Checkpoints of the published projects, which do not say which method made them.

Which method it was is guessed from the names of the learned tensors, which each published method states (`published`).
Checkpoints of this project say it themselves (`checkpoints.py`).
"""

from collections.abc import Collection
from fnmatch import fnmatchcase

from dassl.engine import TRAINER_REGISTRY

# Names of the learned tensors in published checkpoints, of methods that share them.
VISION = ("image_encoder.VPT", "image_encoder.transformer.resblocks.*.VPT_shallow")
TWO_TOWERS = ("prompt_learner.ctx", *VISION, "text_encoder.transformer.resblocks.*.VPT_shallow")
COUPLED = ("prompt_learner.ctx", "prompt_learner.proj.*", "prompt_learner.compound_prompts_text.*")


def stated(attribute: str) -> dict[str, tuple[str, ...]]:
    """The `published` or `published_unused` of each method with published checkpoints, by its name."""
    found = ((name, TRAINER_REGISTRY.get(name)) for name in TRAINER_REGISTRY.registered_names())
    return {name: getattr(method, attribute) for name, method in found if getattr(method, "published", ())}


def learned(keys: Collection[str], method: str = "") -> list[str]:
    """Those of the names that some published method has learned; the others are the frozen CLIP and buffers.

    Without those that the published code of `method`, which loads them, leaves unused.
    """
    unused = stated("published_unused").get(method, ())
    patterns = [pattern for patterns in stated("published").values() for pattern in patterns]
    return [key for key in keys if matches(key, patterns) and not matches(key, unused)]


def other_methods(keys: Collection[str], method: str, expected: Collection[str]) -> list[str]:
    """The methods that tensors with these names are likely from; empty if they may be from `method`.

    `expected` are the names of what `method` itself has learned.
    """
    prompts = learned(keys)
    complete = set(expected) <= set(keys)
    published, unused = stated("published"), stated("published_unused")
    fitting = [name for name in published if all(matches(key, published[name] + unused[name]) for key in prompts)]
    fewest = min((len(published[name]) for name in fitting), default=0)
    # One method's prompts can be part of another's, as CoOp's ctx is of CoCoOp's: fewer patterns fit more closely.
    likely = [name for name in fitting if len(published[name]) == fewest]
    own = (method in likely or complete) if method in fitting else (complete and method not in published)
    return [] if own or not prompts else likely or ["another method"]


def matches(key: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)
