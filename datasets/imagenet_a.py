from dassl.data.datasets import DATASET_REGISTRY

from .imagenet import TestFolders


@DATASET_REGISTRY.register()
class ImageNetA(TestFolders):
    """Photographs of 200 classes that a ResNet-50 took for something else (Hendrycks et al., 2021)."""

    dataset_dir = "imagenet-adversarial"
    image_dir = "imagenet-a"
    counts = (0, 0, 7500)
    n_classes = 200
