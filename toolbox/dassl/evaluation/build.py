"""Evaluators by name."""

from dassl.utils import Registry

EVALUATOR_REGISTRY = Registry("EVALUATOR")


def build_evaluator(cfg, **kwargs):
    """Build the evaluator ``cfg.TEST.EVALUATOR``; ``kwargs`` (such as ``lab2cname``) go to its constructor.

    Raises:
        UsageError: no evaluator has that name.
    """
    name = cfg.TEST.EVALUATOR
    if cfg.VERBOSE:
        print(f"Loading evaluator: {name}")
    return EVALUATOR_REGISTRY.get(name)(cfg, **kwargs)
