from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset


@DATASET_REGISTRY.register()
class StanfordCars(FewShotDataset):
    """Cars by make, model and year (Krause et al., 2013)."""

    dataset_dir = "stanford_cars"
    image_dir = ""  # paths of the split begin with cars_train or cars_test
    split_file = "split_zhou_StanfordCars.json"
    split_id = "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT"
    counts = (6509, 1635, 8041)
    n_classes = 196
