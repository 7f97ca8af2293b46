"""Datasets by name."""

from dassl.utils import Registry

DATASET_REGISTRY = Registry("DATASET")


def build_dataset(cfg):
    """Build the registered dataset named `cfg.DATASET.NAME`.

    Raises:
        UsageError: no dataset with that name is registered.
    """
    if cfg.VERBOSE:
        print(f"Loading dataset: {cfg.DATASET.NAME}")
    return DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)
