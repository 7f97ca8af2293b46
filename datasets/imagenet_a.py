from dassl.data.datasets import DATASET_REGISTRY

from .files import File
from .imagenet import CLASSNAMES, TestFolders


@DATASET_REGISTRY.register()
class ImageNetA(TestFolders):
    """Photographs of 200 classes that a ResNet-50 misclassified (Hendrycks et al., 2021)."""

    dataset_dir = "imagenet-adversarial"
    image_dir = "imagenet-a"
    counts = (0, 0, 7500)
    n_classes = 200

    licence = "MIT (photos belong to their owners)"
    page = "https://github.com/hendrycks/natural-adv-examples"
    files = (
        CLASSNAMES,
        File(
            "imagenet-a.tar",
            url="https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",
            bytes=687552512,
            sha256="3bb3632277e6ba6392ea64c02ddbf4dd2266c9caffd6bc09c9656d28f012589e",
            extract={"imagenet-a": "imagenet-a"},
        ),
    )
