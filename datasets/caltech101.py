from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset
from .files import File


@DATASET_REGISTRY.register()
class Caltech101(FewShotDataset):
    """A hundred object classes, about 300 x 200 pixels (Fei-Fei et al., 2004)."""

    dataset_dir = "caltech-101"
    image_dir = "101_ObjectCategories"
    split_file = "split_zhou_Caltech101.json"
    counts = (4128, 1649, 2465)
    n_classes = 100

    licence = "CC BY 4.0"
    page = "https://data.caltech.edu/records/mzrjq-6wc02"
    files = (
        File(split_file, drive="1hyarUivQE36mY6jSomru6Fjd-JzwcCzN", about=2_000_000),
        File(
            "caltech-101.zip",
            url="https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
            bytes=137414764,
            md5="3138e1922a9193bfa496528edbbc45d0",
            nested_archives="101_ObjectCategories.tar.gz",
            extract={"101_ObjectCategories": "101_ObjectCategories"},
        ),
    )
