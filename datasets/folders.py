"""Datasets whose classes are folders of images."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from dassl.data.datasets import Datum

from common.names import printable

from . import splits
from .base import DatasetError, FewShotDataset, Items

# Those of torchvision's datasets.ImageFolder, others of JPEG, and GIF
IMG_EXTENSIONS: tuple[str, ...] = (
    ".jpg",
    ".jpeg",
    ".png",
    ".ppm",
    ".bmp",
    ".pgm",
    ".tif",
    ".tiff",
    ".webp",
)
IMG_EXTENSIONS += (".jpe", ".jfif", ".gif")
HEIC = (".heic", ".heif")
if find_spec("pillow_heif"):
    IMG_EXTENSIONS += HEIC

Classes = dict[str, tuple[int, str]]  # label and class name by folder


def files_below(folder: Path) -> list[str]:
    """Paths of the files below a folder, relative to it; hidden files and folders are left out.

    Links to folders are followed; each folder is searched once.
    """
    return list(walk_files(folder))


def walk_files(folder: Path) -> Iterator[str]:
    """The same, one after another: the files of a folder by their names, then those below."""
    searched = {os.path.realpath(folder)}
    for parent, folders, files in os.walk(folder, followlinks=True):
        visible = sorted(name for name in folders if not name.startswith("."))
        new = {os.path.realpath(f"{parent}/{name}"): name for name in visible}
        folders[:] = [name for place, name in new.items() if place not in searched]
        searched |= new.keys()
        place = f"{os.path.relpath(parent, folder)}/".removeprefix("./")
        yield from (place + name for name in sorted(files) if not name.startswith("."))


def is_image(name: str) -> bool:
    return name.lower().endswith(IMG_EXTENSIONS)


def kinds(files: Iterable[str]) -> str:
    """Files that are not read as images, by their endings: `12 .heic, 1 .txt`."""
    counts = Counter(Path(file).suffix.lower() or "without an ending" for file in files)
    most = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:5]
    text = ", ".join(f"{number:,} {printable(ending)}" for ending, number in most)
    hint = (
        "; `pip install pillow-heif` reads .heic"
        if any(ending in counts for ending in HEIC)
        else ""
    )
    return f"{text or 'no files'}{', ...' if len(counts) > 5 else ''}{hint}"


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
