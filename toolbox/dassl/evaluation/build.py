"""Evaluators by name."""

from dassl.utils import Registry

EVALUATOR_REGISTRY = Registry("EVALUATOR")


def build_evaluator(cfg, **kwargs):
    """Build the registered evaluator ``cfg.TEST.EVALUATOR`` with ``kwargs``, such as
    ``lab2cname``.
    """
    name = cfg.TEST.EVALUATOR
    if cfg.VERBOSE:
        print(f"Loading evaluator: {name}")
    return EVALUATOR_REGISTRY.get(name)(cfg, **kwargs)
