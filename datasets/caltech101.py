from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset


@DATASET_REGISTRY.register()
class Caltech101(FewShotDataset):
    """Objects of a hundred kinds in some 300 x 200 pixels (Fei-Fei et al., 2004)."""

    dataset_dir = "caltech-101"
    image_dir = "101_ObjectCategories"
    split_file = "split_zhou_Caltech101.json"
    split_id = "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN"
    counts = (4128, 1649, 2465)
    n_classes = 100
