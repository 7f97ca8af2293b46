from dassl.data.datasets import DATASET_REGISTRY

from .base import DatasetError
from .folders import Classes
from .imagenet import TestFolders


@DATASET_REGISTRY.register()
class ImageNetV2(TestFolders):
    """A second test set, collected as the first was (Recht et al., 2019). Its folders are named by the labels."""

    dataset_dir = "imagenetv2"
    image_dir = "imagenetv2-matched-frequency-format-val"
    counts = (0, 0, 10000)

    def classes(self, folders: list[str]) -> Classes:
        names, source = self.words()
        classes = {str(label): (label, name) for label, name in enumerate(names.values())}
        unknown = [folder for folder in folders if folder not in classes]
        if unknown:
            raise DatasetError(f"{self.images / unknown[0]} is none of the {len(classes)} classes in {source}")
        return classes
