from dassl.data.datasets import DATASET_REGISTRY

from .base import Split
from .files import File
from .folders import Classes, FolderDataset

# CoOp's
CLASSNAMES = File("classnames.txt", drive="1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF", about=40_000)


class ImageNetFolders(FolderDataset):
    """Images of ImageNet's classes in folders named by WordNet ids (n01440764): labels follow the
    sorted folders.
    """

    n_classes = 1000

    def classes(self, folders: list[str]) -> Classes:
        names, source = self.words()
        return self.name_folders(folders, names, source)

    def words(self) -> tuple[dict[str, str], str]:
        """Class names by WordNet id, sorted by it, and their source.

        The source is classnames.txt in this dataset's folder, else in ImageNet's, else open_clip.
        """
        for file in (self.root / "classnames.txt", self.data / "imagenet/classnames.txt"):
            if file.is_file():
                return dict(sorted(self.read_classnames(file).items())), str(file)
        from open_clip import IMAGENET_CLASSNAMES
        from timm.data import ImageNetInfo  # has the ids, which open_clip lacks

        print(
            f"No {self.root}/classnames.txt: using open_clip's class names (some differ from "
            "CoOp's)"
        )
        return dict(
            zip(ImageNetInfo().label_names(), IMAGENET_CLASSNAMES, strict=True)
        ), "open_clip"


class TestFolders(ImageNetFolders):
    """Test images of ImageNet's classes, for prompts that were learned on ImageNet."""

    test_only = True

    def read_split(self) -> Split:
        return [], [], self.read_classes(self.images, self.classes(self.class_folders(self.images)))


@DATASET_REGISTRY.register()
class ImageNet(ImageNetFolders):
    """A thousand object classes (Deng et al., 2009). Its validation images are the test set, as is
    usual.
    """

    dataset_dir = "imagenet"
    image_dir = "images"
    counts = (1281167, 0, 50000)
    val_is_test = True

    licence = "non-commercial research, after agreeing to terms"
    page = "https://image-net.org/download-images.php"
    manual_steps = (
        "get them at https://image-net.org/download-images.php (or link images/train "
        "and images/val to copies)"
    )
    files = (
        CLASSNAMES,
        File(
            "ILSVRC2012_img_val.tar",
            bytes=6744924160,
            md5="29b22e2961454d5413ddabcf34fc5622",
            labels_from="ILSVRC2012_devkit_t12.tar.gz",
            extract={"": "images/val"},
        ),
        File(
            "ILSVRC2012_img_train.tar",
            bytes=147897477120,
            md5="1d675b47d978889d74fa0da5fadfb00e",
            nested_archives="n*.tar",
            extract={"": "images/train"},
        ),
        File(
            "ILSVRC2012_devkit_t12.tar.gz",
            bytes=2568145,
            md5="fa75699e90414af021442c21a62c3abf",
            extract={},
        ),
    )

    def read_split(self) -> Split:
        classes = self.classes(self.class_folders(self.images / "train"))
        return (
            self.read_classes(self.images / "train", classes),
            [],
            self.read_classes(self.images / "val", classes),
        )
