from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset


@DATASET_REGISTRY.register()
class SUN397(FewShotDataset):
    """Scenes, indoors and outdoors (Xiao et al., 2010)."""

    dataset_dir = "sun397"
    image_dir = "SUN397"
    split_file = "split_zhou_SUN397.json"
    split_id = "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq"
    counts = (15880, 3970, 19850)
    n_classes = 397
