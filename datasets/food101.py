from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset
from .files import File


@DATASET_REGISTRY.register()
class Food101(FewShotDataset):
    """Dishes, a thousand photographs of each (Bossard et al., 2014)."""

    dataset_dir = "food-101"
    image_dir = "images"
    split_file = "split_zhou_Food101.json"
    counts = (50500, 20200, 30300)
    n_classes = 101
    template = "a photo of {}, a type of food."

    licence = "scientific fair use (photos belong to their owners)"
    page = "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/"
    files = (
        File(split_file, drive="1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl", about=2_000_000),
        File(
            "food-101.tar.gz",
            url="http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
            bytes=4996278331,
            md5="85eeb15f3717b99a5da872d97d918f87",
            extract={"images": "images"},
        ),
    )
