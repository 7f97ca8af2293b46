"""The former place of `inference.classifier.PromptedClassifier`, for one version."""

import warnings
from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    if name != "PromptedClassifier":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    what = "trainers.classifier is now inference.classifier: import PromptedClassifier from there"
    warnings.warn(what, DeprecationWarning, stacklevel=2)
    return import_module("inference.classifier").PromptedClassifier  # not an import: methods know nothing of inference
