from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset
from .files import File


@DATASET_REGISTRY.register()
class OxfordFlowers(FewShotDataset):
    """Flowers that are common in the United Kingdom (Nilsback and Zisserman, 2008)."""

    dataset_dir = "oxford_flowers"
    image_dir = "jpg"
    split_file = "split_zhou_OxfordFlowers.json"
    counts = (4093, 1633, 2463)
    n_classes = 102
    template = "a photo of a {}, a type of flower."

    licence = "none stated; research use"
    page = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
    files = (
        File(split_file, drive="1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT", about=2_000_000),
        File(
            "102flowers.tgz",
            url="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/102flowers.tgz",
            bytes=344862509,
            md5="52808999861908f626f3c1f4e79d11fa",
            extract={"jpg": "jpg"},
        ),
    )
