"""Datasets, transforms, samplers and the `DataManager` that joins them into data loaders."""

from dassl.data.data_manager import DataManager, DatasetWrapper, build_data_loader

__all__ = ["DataManager", "DatasetWrapper", "build_data_loader"]
