from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset
from .files import File


@DATASET_REGISTRY.register()
class OxfordPets(FewShotDataset):
    """Breeds of cats and dogs (Parkhi et al., 2012)."""

    dataset_dir = "oxford_pets"
    image_dir = "images"
    split_file = "split_zhou_OxfordPets.json"
    counts = (2944, 736, 3669)
    n_classes = 37
    template = "a photo of a {}, a type of pet."

    licence = "CC BY-SA 4.0"
    page = "https://www.robots.ox.ac.uk/~vgg/data/pets/"
    files = (
        File(split_file, drive="1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs", about=2_000_000),
        File(
            "images.tar.gz",
            url="https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz",
            bytes=791918971,
            md5="5c4f3ee8e5d25df40f4fd59a7f44e54c",
            extract={"images": "images"},
        ),
    )
