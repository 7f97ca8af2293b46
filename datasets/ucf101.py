from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset


@DATASET_REGISTRY.register()
class UCF101(FewShotDataset):
    """The middle frames of videos of human actions (Soomro et al., 2012)."""

    dataset_dir = "ucf101"
    template = "a photo of a person doing {}."
    image_dir = "UCF-101-midframes"
    split_file = "split_zhou_UCF101.json"
    split_id = "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y"
    counts = (7639, 1898, 3783)
    n_classes = 101
