from dassl.data.datasets import DATASET_REGISTRY

from .base import DatasetError
from .files import File
from .folders import Classes
from .imagenet import CLASSNAMES, TestFolders


@DATASET_REGISTRY.register()
class ImageNetV2(TestFolders):
    """A second test set, collected like the first (Recht et al., 2019). Its folders are named by
    label.
    """

    dataset_dir = "imagenetv2"
    image_dir = "imagenetv2-matched-frequency-format-val"
    counts = (0, 0, 10000)

    licence = "MIT (photos belong to their owners)"
    page = "https://github.com/modestyachts/ImageNetV2"
    files = (
        CLASSNAMES,
        File(
            "imagenetv2-matched-frequency.tar.gz",
            url="https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/"
            "imagenetv2-matched-frequency.tar.gz",
            bytes=1264079360,
            sha256="f0c37fdf925916b19ea1323cd9a2208cdb6959ba2c32eef2a7fc393835c9ca7c",
            extract={image_dir: image_dir},
        ),
    )

    def classes(self, folders: list[str]) -> Classes:
        names, source = self.words()
        classes = {str(label): (label, name) for label, name in enumerate(names.values())}
        unknown = [folder for folder in folders if folder not in classes]
        if unknown:
            folder = self.images / unknown[0]
            fault = f"{folder} is not one of the {len(classes)} classes in {source}"
            raise DatasetError(fault, "move it elsewhere", folder)
        return classes
