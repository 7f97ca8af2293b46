"""Images that are read as those of a test."""

from typing import Any

from torch.utils.data import DataLoader

SAME = ("batch_size", "num_workers", "collate_fn", "worker_init_fn", "pin_memory", "generator")


def loader_like(loader: Any, images: Any, **others: Any) -> DataLoader:
    """A loader of other images in their order, with the options of a loader; `others` replace
    them.
    """
    options: dict[str, Any] = {name: getattr(loader, name) for name in SAME}
    return DataLoader(images, **options | others)


def images_like(images: Any, items: list, transform: Any) -> Any:
    """Other images (a list of `Datum`) that are read as `images` are, with another transform."""
    others = type(images)(images.cfg, items, transform=transform)
    others.on_read = getattr(images, "on_read", None)  # the published Dassl has none
    return others


def loader_of(items: list, loader: Any) -> DataLoader:
    """A loader of other images (a list of `Datum`), which are read as those of a loader."""
    images = loader.dataset
    return loader_like(loader, images_like(images, items, images.transform))
