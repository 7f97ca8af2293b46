from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset
from .files import File


@DATASET_REGISTRY.register()
class SUN397(FewShotDataset):
    """Scenes, indoors and outdoors (Xiao et al., 2010)."""

    dataset_dir = "sun397"
    image_dir = "SUN397"
    split_file = "split_zhou_SUN397.json"
    counts = (15880, 3970, 19850)
    n_classes = 397

    licence = "none stated; research use"
    page = "https://vision.princeton.edu/projects/2010/SUN/"
    files = (
        File(split_file, drive="1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq", about=2_000_000),
        File(
            "SUN397.tar.gz",
            url="http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz",
            bytes=39077296924,
            md5="8ca2778205c41d23104230ba66911c7a",
            extract={"SUN397": "SUN397"},
        ),
    )
