from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset


@DATASET_REGISTRY.register()
class Food101(FewShotDataset):
    """Dishes, a thousand photographs of each (Bossard et al., 2014)."""

    dataset_dir = "food-101"
    template = "a photo of {}, a type of food."
    image_dir = "images"
    split_file = "split_zhou_Food101.json"
    split_id = "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl"
    counts = (50500, 20200, 30300)
    n_classes = 101
