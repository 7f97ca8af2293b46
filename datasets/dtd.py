from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset


@DATASET_REGISTRY.register()
class DescribableTextures(FewShotDataset):
    """Textures by the word that describes them (Cimpoi et al., 2014)."""

    dataset_dir = "dtd"
    template = "{} texture."
    image_dir = "images"
    split_file = "split_zhou_DescribableTextures.json"
    split_id = "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x"
    counts = (2820, 1128, 1692)
    n_classes = 47
