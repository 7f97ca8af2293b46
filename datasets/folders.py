"""Datasets whose classes are folders of images."""

import os
from pathlib import Path

from dassl.data.datasets import Datum

from common.image_files import IMG_EXTENSIONS, files_below, is_image, kinds
from common.names import printable

from . import splits
from .base import DatasetError, FewShotDataset, Items

Classes = dict[str, tuple[int, str]]  # label and class name by folder


class FolderDataset(FewShotDataset):
    """A dataset that is split by its folders instead of a split file."""

    def class_folders(self, parent: Path) -> list[str]:
        """Sorted names of the class folders; files, hidden folders and that of few-shot choices are
        ignored.
        """
        if not parent.is_dir():
            raise DatasetError(f"no folder {parent}", self.remedy, parent)
        names = (
            name
            for name in os.listdir(parent)
            if not name.startswith(".") and name != splits.FOLDER
        )
        # Not a link to itself
        folders = sorted(name for name in names if os.path.isdir(parent / name))
        if not folders:
            raise DatasetError(f"no class folders in {parent}", self.remedy, parent)
        return folders

    def read_classes(self, parent: Path, classes: Classes) -> Items:
        """The images below class folders, sorted by class and name, so that a seed selects the same
        ones everywhere. Raises DatasetError if a folder is not a class, or has no images."""
        items: Items = []
        ignored: list[str] = []
        for folder in self.class_folders(parent):
            path = parent / folder
            if folder not in classes:
                fault = f"{path} is not a class of the training images"
                raise DatasetError(fault, f"move it elsewhere, or {self.remedy}", path)
            files = files_below(path)
            names = sorted(filter(is_image, files))
            ignored += [f"{path}/{name}" for name in set(files).difference(names)]
            if not names:
                fault = f"no images in {path} ({' '.join(IMG_EXTENSIONS)}), but {kinds(files)}"
                raise DatasetError(fault, self.remedy, parent)
            label, classname = classes[folder]
            items += [
                Datum(impath=f"{path}/{name}", label=label, classname=classname) for name in names
            ]
        if ignored:
            print(
                f"Files in {parent} that are not images: {kinds(ignored)}, such as "
                f"{printable(min(ignored))}"
            )
        return items

    def name_folders(self, folders: list[str], names: dict[str, str], source: str) -> Classes:
        """Number the folders and look up their class names."""
        nameless = [folder for folder in folders if folder not in names]
        if nameless:
            others = "".join(f", {folder}" for folder in nameless[1:10])
            fault = f"{source} has no name for the folder {printable(nameless[0] + others)}"
            raise DatasetError(fault, "add one, or remove the folder", source)
        return {folder: (label, names[folder]) for label, folder in enumerate(folders)}

    def read_classnames(self, file: Path) -> dict[str, str]:
        """Class names by folder, from lines of `<folder> <name>` as in ImageNet's
        classnames.txt.
        """
        rows = [line.split(None, 1) for line in self.read_lines(file)]
        if any(len(row) < 2 for row in rows):
            fault = f"{file} is damaged: expected lines of `FOLDER NAME` with a non-empty name"
            raise DatasetError(fault, "fix or delete it", file)
        return {row[0]: row[1] for row in rows}
