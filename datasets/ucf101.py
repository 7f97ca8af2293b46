from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset
from .files import File


@DATASET_REGISTRY.register()
class UCF101(FewShotDataset):
    """The middle frames of videos of human actions (Soomro et al., 2012)."""

    dataset_dir = "ucf101"
    image_dir = "UCF-101-midframes"
    split_file = "split_zhou_UCF101.json"
    counts = (7639, 1898, 3783)
    n_classes = 101
    template = "a photo of a person doing {}."

    licence = "none stated; research use"
    page = "https://www.crcv.ucf.edu/data/UCF101.php"
    files = (
        File(split_file, drive="1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y", about=2_000_000),
        File(  # made by CoOp's authors
            "UCF-101-midframes.zip",
            drive="10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O",
            about=800_000_000,
            extract={"UCF-101-midframes": "UCF-101-midframes"},
        ),
    )
