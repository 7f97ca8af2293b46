"""Datasets whose classes are folders of images."""

import os
from pathlib import Path

from dassl.data.datasets import Datum
from torchvision.datasets.folder import IMG_EXTENSIONS

from .base import DatasetError, FewShotDataset, Items

Classes = dict[str, tuple[int, str]]  # label and class name by folder


class FolderDataset(FewShotDataset):
    """A dataset whose split is what its class folders hold."""

    def class_folders(self, parent: Path) -> list[str]:
        """Names of the folders in a folder, sorted; README.txt and what is hidden do not count."""
        if not parent.is_dir():
            raise DatasetError(f"no folder {parent}: {self.remedy}")
        with os.scandir(parent) as entries:
            folders = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        if not folders:
            raise DatasetError(f"no class folders in {parent}: {self.remedy}")
        for folder in folders:
            if any("\ud800" <= letter <= "\udfff" for letter in folder):  # bytes that are no UTF-8
                raise DatasetError(f"{parent} has a folder {folder!r}, which is no name of a class: rename it")
        return folders

    def read_classes(self, parent: Path, classes: Classes) -> Items:
        """The images in the class folders of a folder, by class and name: so a seed chooses the same ones everywhere.

        Raises:
            DatasetError: a folder is no class, or holds no image.
        """
        items, ignored = [], []
        for folder in self.class_folders(parent):
            if folder not in classes:
                raise DatasetError(
                    f"{parent / folder} is no class of the training images: move it elsewhere, or {self.remedy}"
                )
            files = [name for name in os.listdir(parent / folder) if not name.startswith(".")]
            names = sorted(name for name in files if name.lower().endswith(IMG_EXTENSIONS))
            if len(names) < len(files):
                ignored += [f"{parent}/{folder}/{name}" for name in set(files).difference(names)]
            if not names:
                raise DatasetError(f"no images in {parent / folder} ({' '.join(IMG_EXTENSIONS)}): {self.remedy}")
            label, classname = classes[folder]
            items += [Datum(impath=f"{parent}/{folder}/{name}", label=label, classname=classname) for name in names]
        if ignored:
            print(f"Files in {parent} that are no images: {len(ignored):,}, such as {min(ignored)}")
        return items

    def name_folders(self, folders: list[str], words: dict[str, str], source: str) -> Classes:
        """Number the folders and look up their names."""
        nameless = [folder for folder in folders if folder not in words]
        if nameless:
            raise DatasetError(f"{source} has no name for the folder {nameless[0]}: add one, or remove the folder")
        return {folder: (label, words[folder]) for label, folder in enumerate(folders)}

    def read_classnames(self, file: Path) -> dict[str, str]:
        """Class names by folder, from lines of `<folder> <name>` as in ImageNet's classnames.txt."""
        rows = [line.split(None, 1) for line in self.read_lines(file)]
        if any(len(row) < 2 for row in rows):
            raise DatasetError(
                f"{file} is damaged: its lines are to be FOLDER NAME, with no name empty; mend or delete it"
            )
        return dict(rows)
