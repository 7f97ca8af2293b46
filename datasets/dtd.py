from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset
from .files import File


@DATASET_REGISTRY.register()
class DescribableTextures(FewShotDataset):
    """Textures by the word that describes them (Cimpoi et al., 2014)."""

    dataset_dir = "dtd"
    image_dir = "images"
    split_file = "split_zhou_DescribableTextures.json"
    counts = (2820, 1128, 1692)
    n_classes = 47
    template = "{} texture."

    licence = "research use"
    page = "https://www.robots.ox.ac.uk/~vgg/data/dtd/"
    files = (
        File(split_file, drive="1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x", about=2_000_000),
        File(
            "dtd-r1.0.1.tar.gz",
            url="https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
            bytes=625239812,
            md5="fff73e5086ae6bdbea199a49dfb8a4c1",
            extract={"images": "images"},
        ),
    )
