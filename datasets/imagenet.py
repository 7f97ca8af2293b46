from dassl.data.datasets import DATASET_REGISTRY

from .base import Items
from .folders import Classes, FolderDataset


class ImageNetFolders(FolderDataset):
    """Images of ImageNet's classes in folders named by WordNet ids (n01440764): labels count the sorted folders."""

    n_classes = 1000

    def classes(self, folders: list[str]) -> Classes:
        names, source = self.words()
        return self.name_folders(folders, names, source)

    def words(self) -> tuple[dict[str, str], str]:
        """Class names by WordNet id, sorted by it, and where they are from.

        That is classnames.txt in this dataset's folder, else in ImageNet's, else open_clip.
        """
        for file in (self.root / "classnames.txt", self.data / "imagenet/classnames.txt"):
            if file.is_file():
                return dict(sorted(self.read_classnames(file).items())), str(file)
        from open_clip import IMAGENET_CLASSNAMES
        from timm.data import ImageNetInfo  # knows the ids, which open_clip does not

        print(f"No {self.root}/classnames.txt: taking open_clip's class names, some of which differ from CoOp's")
        return dict(zip(ImageNetInfo().label_names(), IMAGENET_CLASSNAMES, strict=True)), "open_clip"


class TestFolders(ImageNetFolders):
    """Test images of ImageNet's classes; what is tested on them was learned on ImageNet."""

    test_only = True

    def read_split(self) -> tuple[Items, Items, Items]:
        return [], [], self.read_classes(self.images, self.classes(self.class_folders(self.images)))


@DATASET_REGISTRY.register()
class ImageNet(ImageNetFolders):
    """A thousand kinds of things (Deng et al., 2009). Its validation images are the test set, as everywhere."""

    dataset_dir = "imagenet"
    image_dir = "images"
    counts = (1281167, 0, 50000)
    val_is_test = True

    def read_split(self) -> tuple[Items, Items, Items]:
        classes = self.classes(self.class_folders(self.images / "train"))
        return self.read_classes(self.images / "train", classes), [], self.read_classes(self.images / "val", classes)
