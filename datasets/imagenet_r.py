from dassl.data.datasets import DATASET_REGISTRY

from .imagenet import TestFolders


@DATASET_REGISTRY.register()
class ImageNetR(TestFolders):
    """Art, cartoons, graffiti, ... of 200 classes (Hendrycks et al., 2021)."""

    dataset_dir = "imagenet-rendition"
    image_dir = "imagenet-r"
    counts = (0, 0, 30000)
    n_classes = 200
