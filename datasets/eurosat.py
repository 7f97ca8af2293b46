from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset


@DATASET_REGISTRY.register()
class EuroSAT(FewShotDataset):
    """Ten kinds of land use in Sentinel-2 images of 64 x 64 pixels (Helber et al., 2019)."""

    dataset_dir = "eurosat"
    template = "a centered satellite photo of {}."
    image_dir = "2750"
    split_file = "split_zhou_EuroSAT.json"
    split_id = "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o"
    counts = (13500, 5400, 8100)
    n_classes = 10
