from dassl.data.datasets import DATASET_REGISTRY

from .files import File
from .imagenet import CLASSNAMES, TestFolders


@DATASET_REGISTRY.register()
class ImageNetSketch(TestFolders):
    """Black and white sketches of ImageNet's classes (Wang et al., 2019)."""

    dataset_dir = "imagenet-sketch"
    image_dir = "images"
    counts = (0, 0, 50889)

    licence = "none stated; research use"
    page = "https://github.com/HaohanWang/ImageNet-Sketch"
    files = (
        CLASSNAMES,
        File(
            "ImageNet-Sketch.zip",
            drive="1Mj0i5HBthqH1p_yeXzsg22gZduvgoNeA",
            bytes=7593573012,
            sha256="4d3ce6b82a7c48aabf14aeac105eb533e75707f152cc858f55bfc022031a72ed",
            extract={"sketch": "images"},
        ),
    )
