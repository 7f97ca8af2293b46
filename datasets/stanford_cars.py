from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset
from .files import File


@DATASET_REGISTRY.register()
class StanfordCars(FewShotDataset):
    """Cars by make, model and year (Krause et al., 2013)."""

    dataset_dir = "stanford_cars"
    image_dir = ""  # paths of the split begin with cars_train or cars_test
    split_file = "split_zhou_StanfordCars.json"
    counts = (6509, 1635, 8041)
    n_classes = 196

    licence = "none stated; research use"
    # The authors' address no longer works; fast.ai has a copy
    page = "https://docs.fast.ai/data.external.html"
    files = (
        File(split_file, drive="1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT", about=2_000_000),
        File(
            "cars_train.tgz",
            bytes=979269282,
            sha256="512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288",
            extract={"cars_train": "cars_train"},
        ),
        File(
            "cars_test.tgz",
            bytes=977350468,
            sha256="bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243",
            extract={"cars_test": "cars_test"},
        ),
        File(
            "stanford-cars.tgz",
            url="https://s3.amazonaws.com/fast-ai-imageclas/stanford-cars.tgz",
            bytes=1957803273,
            md5="9045d6673c9ced0889f41816f6bf2f9f",
            extract={"cars_train": "cars_train", "cars_test": "cars_test"},
        ),
    )
