from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset


@DATASET_REGISTRY.register()
class OxfordPets(FewShotDataset):
    """Breeds of cats and dogs (Parkhi et al., 2012)."""

    dataset_dir = "oxford_pets"
    template = "a photo of a {}, a type of pet."
    image_dir = "images"
    split_file = "split_zhou_OxfordPets.json"
    split_id = "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs"
    counts = (2944, 736, 3669)
    n_classes = 37
