"""Datasets, transforms, samplers, and the `DataManager` that builds data loaders from them."""

from dassl.data.data_manager import DataManager, DatasetWrapper, build_data_loader

__all__ = ["DataManager", "DatasetWrapper", "build_data_loader"]
