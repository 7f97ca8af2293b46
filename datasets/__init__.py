"""The datasets of the field. Importing this package puts every one of them into Dassl's DATASET_REGISTRY."""

from importlib import import_module
from pkgutil import iter_modules

from .base import DatasetError

for module in iter_modules(__path__):
    import_module(f"{__name__}.{module.name}")

__all__ = ["DatasetError"]
