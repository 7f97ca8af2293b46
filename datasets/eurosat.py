from dassl.data.datasets import DATASET_REGISTRY

from .base import FewShotDataset
from .files import File


@DATASET_REGISTRY.register()
class EuroSAT(FewShotDataset):
    """Ten kinds of land use in Sentinel-2 images of 64 x 64 pixels (Helber et al., 2019)."""

    dataset_dir = "eurosat"
    image_dir = "2750"
    split_file = "split_zhou_EuroSAT.json"
    counts = (13500, 5400, 8100)
    n_classes = 10
    template = "a centered satellite photo of {}."

    licence = "MIT"
    page = "https://github.com/phelber/eurosat"
    files = (
        File(split_file, drive="1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o", about=2_000_000),
        File(
            "EuroSAT.zip",
            url="https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
            "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
            bytes=94280567,
            md5="c8fa014336c82ac7804f0398fcb19387",
            extract={"2750": "2750"},
        ),
    )
