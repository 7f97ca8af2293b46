from dassl.data.datasets import DATASET_REGISTRY

from .imagenet import TestFolders


@DATASET_REGISTRY.register()
class ImageNetSketch(TestFolders):
    """Black and white sketches of ImageNet's classes (Wang et al., 2019)."""

    dataset_dir = "imagenet-sketch"
    image_dir = "images"
    counts = (0, 0, 50889)
