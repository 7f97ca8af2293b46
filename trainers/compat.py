"""Checkpoints that do not say which method made them: those of the published projects, and ours before version 1.0.

Which method it was is guessed from the names of the learned tensors. Checkpoints of this version say it themselves
(`checkpoints.py`), so a new method needs no entry here.
"""

from collections.abc import Collection
from fnmatch import fnmatchcase

# Names of the learned tensors in the published checkpoints; * is any text.
VISION = ("image_encoder.VPT", "image_encoder.transformer.resblocks.*.VPT_shallow")
TWO_TOWERS = ("prompt_learner.ctx", *VISION, "text_encoder.transformer.resblocks.*.VPT_shallow")
COUPLED = ("prompt_learner.ctx", "prompt_learner.proj.*", "prompt_learner.compound_prompts_text.*")
PUBLISHED = {
    "CoOp": ("ctx",),
    "CoCoOp": ("ctx", "meta_net.*"),
    "VPT": VISION,
    "IVLP": TWO_TOWERS,
    "PromptSRC": TWO_TOWERS,
    "MaPLe": (*COUPLED, "prompt_learner.compound_prompt_projections.*"),
    "MPL": (*COUPLED, "prompt_learner.txt2img_proj.*"),
}


def learned(keys: Collection[str]) -> list[str]:
    """Those of the names that some published method has learned; the others are the frozen CLIP and buffers."""
    return [key for key in keys if any(matches(key, patterns) for patterns in PUBLISHED.values())]


def other_methods(keys: Collection[str], method: str, expected: Collection[str]) -> list[str]:
    """The methods that these tensors are likely from; empty if they may be from `method`.

    Args:
        keys: names of all tensors of the checkpoint.
        method: the method that wants to load them.
        expected: names of what it has learned itself.
    """
    prompts = learned(keys)
    complete = set(expected) <= set(keys)
    fitting = [name for name, patterns in PUBLISHED.items() if all(matches(key, patterns) for key in prompts)]
    fewest = min((len(PUBLISHED[name]) for name in fitting), default=0)
    # One method's prompts can be part of another's, as CoOp's ctx is of CoCoOp's: fewer patterns fit more closely.
    likely = [name for name in fitting if len(PUBLISHED[name]) == fewest]
    own = (method in likely or complete) if method in fitting else (complete and method not in PUBLISHED)
    return [] if own or not prompts else likely or ["another method"]


def matches(key: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)
