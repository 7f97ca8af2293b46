from dassl.data.datasets import DATASET_REGISTRY

from .files import File
from .imagenet import CLASSNAMES, TestFolders


@DATASET_REGISTRY.register()
class ImageNetR(TestFolders):
    """Art, cartoons, graffiti, ... of 200 classes (Hendrycks et al., 2021)."""

    dataset_dir = "imagenet-rendition"
    image_dir = "imagenet-r"
    counts = (0, 0, 30000)
    n_classes = 200

    licence = "MIT (images belong to their owners)"
    page = "https://github.com/hendrycks/imagenet-r"
    files = (
        CLASSNAMES,
        File(
            "imagenet-r.tar",
            url="https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
            bytes=2191079936,
            sha256="18c6bf493b39a0d975d48e587437f562caab9c52ae6327dcfa9dd8eb54aa1b52",
            extract={"imagenet-r": "imagenet-r"},
        ),
    )
