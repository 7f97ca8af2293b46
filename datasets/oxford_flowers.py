from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset


@DATASET_REGISTRY.register()
class OxfordFlowers(FewShotDataset):
    """Flowers that are common in the United Kingdom (Nilsback and Zisserman, 2008)."""

    dataset_dir = "oxford_flowers"
    template = "a photo of a {}, a type of flower."
    image_dir = "jpg"
    split_file = "split_zhou_OxfordFlowers.json"
    split_id = "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT"
    counts = (4093, 1633, 2463)
    n_classes = 102
