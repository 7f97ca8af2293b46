"""Datasets whose classes are folders of images."""

import os
from pathlib import Path

from dassl.data.datasets import Datum

from common.names import printable

from . import splits
from .base import DatasetError, FewShotDataset, Items

# As torchvision's datasets.ImageFolder
IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

Classes = dict[str, tuple[int, str]]  # label and class name by folder


def files_below(folder: Path) -> list[str]:
    """Paths of the files below a folder, relative to it; hidden files and folders are left out.

    Links to folders are not followed, and count as files.
    """
    paths: list[str] = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if os.path.islink(f"{parent}/{name}")]
        place = f"{os.path.relpath(parent, folder)}/".removeprefix("./")
        paths += [place + name for name in (*files, *links) if not name.startswith(".")]
    return paths


def is_image(name: str) -> bool:
    return name.lower().endswith(IMG_EXTENSIONS)


class FolderDataset(FewShotDataset):
    """A dataset that is split by its folders instead of a split file."""

    def class_folders(self, parent: Path) -> list[str]:
        """Sorted names of the class folders; files, hidden folders and that of few-shot choices are ignored."""
        if not parent.is_dir():
            raise DatasetError(f"no folder {parent}", self.remedy, parent)
        names = (name for name in os.listdir(parent) if not name.startswith(".") and name != splits.FOLDER)
        folders = []
        for name in sorted(names):
            if os.path.isdir(parent / name):
                folders.append(name)
            elif not os.path.exists(parent / name):
                print(f"Left out: {printable(parent / name)} is a link that leads nowhere")
        if not folders:
            raise DatasetError(f"no class folders in {parent}", self.remedy, parent)
        return folders

    def read_classes(self, parent: Path, classes: Classes) -> Items:
        """The images below class folders, sorted by class and name, so that a seed selects the same ones everywhere.
        Raises DatasetError if a folder is not a class, or has no images."""
        items: Items = []
        ignored: list[str] = []
        for folder in self.class_folders(parent):
            path = parent / folder
            if folder not in classes:
                what = f"{path} is not a class of the training images"
                raise DatasetError(what, f"move it elsewhere, or {self.remedy}", path)
            files = files_below(path)
            names = sorted(filter(is_image, files))
            ignored += [f"{path}/{name}" for name in set(files).difference(names)]
            if not names:
                raise DatasetError(f"no images in {path} ({' '.join(IMG_EXTENSIONS)})", self.remedy, parent)
            label, classname = classes[folder]
            items += [Datum(impath=f"{path}/{name}", label=label, classname=classname) for name in names]
        if ignored:
            print(f"Files in {parent} that are not images: {len(ignored):,}, such as {printable(min(ignored))}")
        return items

    def name_folders(self, folders: list[str], names: dict[str, str], source: str) -> Classes:
        """Number the folders and look up their class names."""
        nameless = [folder for folder in folders if folder not in names]
        if nameless:
            others = "".join(f", {folder}" for folder in nameless[1:10])
            what = f"{source} has no name for the folder {printable(nameless[0] + others)}"
            raise DatasetError(what, "add one, or remove the folder", source)
        return {folder: (label, names[folder]) for label, folder in enumerate(folders)}

    def read_classnames(self, file: Path) -> dict[str, str]:
        """Class names by folder, from lines of `<folder> <name>` as in ImageNet's classnames.txt."""
        rows = [line.split(None, 1) for line in self.read_lines(file)]
        if any(len(row) < 2 for row in rows):
            what = f"{file} is damaged: expected lines of `FOLDER NAME` with a non-empty name"
            raise DatasetError(what, "fix or delete it", file)
        return {row[0]: row[1] for row in rows}
