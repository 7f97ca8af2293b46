"""Datasets, transforms, samplers, and the `DataManager` that builds data loaders from them."""

from dassl.utils import lazy_names

__getattr__, __all__ = lazy_names(
    __name__, {"data_manager": "DataManager DatasetWrapper build_data_loader"}
)
