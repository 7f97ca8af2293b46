"""Miniature trees of the fifteen datasets in their original layout: four classes, images of 8 x 8
pixels.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from marks import to_json
from PIL import Image

SIZES = {"train": 3, "val": 1, "test": 2}  # images a class
Split = dict[str, list[list]]  # rows of path, label and class name by part


class Layout(NamedTuple):
    """A dataset with a split file: its folders, its classes as {folder: name}, and its image
    names.
    """

    folder: str
    images: str
    split: str
    classes: dict[str, str]
    image: str


# Of each dataset with a split file
PLACES = yaml.safe_load(Path(__file__).with_name("trees.yaml").read_text())
LAYOUTS = {
    name: Layout(*(facts[field] for field in Layout._fields))
    for name, facts in PLACES.items()
    if "split" in facts
}
# Two named crane
WNIDS = {
    "n01440764": "tench",
    "n02012849": "crane",
    "n03126707": "crane",
    "n03710637": "maillot",
}
FOLDERS = {  # test sets of ImageNet's classes: folder of the images, and image name
    "imagenetv2": ("imagenetv2/imagenetv2-matched-frequency-format-val", "{n:040x}.jpeg"),
    "imagenet_sketch": ("imagenet-sketch/images", "sketch_{n}.JPEG"),
    "imagenet_a": ("imagenet-adversarial/imagenet-a", "0.00{n} _ digital clock _ 0.86.jpg"),
    "imagenet_r": ("imagenet-rendition/imagenet-r", "art_{n}.jpg"),
}
NAMES = (*LAYOUTS, "fgvc_aircraft", "imagenet", *FOLDERS)  # as in configs/datasets


def build_tree(name: str, root: Path) -> Path:
    """Write the miniature of the dataset with this config name under `root`; returns the dataset's
    folder.
    """
    if name in LAYOUTS:
        return with_split_file(name, root)
    if name == "fgvc_aircraft":
        return fgvc_aircraft(root)
    if name == "imagenet":
        for part, image in (("train", "{folder}_{n}.JPEG"), ("val", "ILSVRC2012_val_{n:08}.JPEG")):
            class_folders(
                root / "imagenet/images" / part,
                WNIDS,
                image,
                SIZES["train" if part == "train" else "test"],
            )
        folder = root / "imagenet"
    else:
        images, image = FOLDERS[name]
        class_folders(
            root / images, range(4) if name == "imagenetv2" else WNIDS, image, SIZES["test"]
        )
        (root / images / "README.txt").write_text("Not a class.\n")
        folder = (root / images).parent
    (folder / "classnames.txt").write_text(
        "".join(f"{wnid} {words}\n" for wnid, words in WNIDS.items())
    )
    return folder


def with_split_file(name: str, root: Path) -> Path:
    layout = LAYOUTS[name]
    i = 0
    folder = root / layout.folder
    split: Split = {part: [] for part in SIZES}
    for label, (place, classname) in enumerate(layout.classes.items()):
        n = 0
        for part, size in SIZES.items():
            half = "test" if part == "test" else "train"
            for _ in range(size):
                n = n + 1
                i = i + 1
                path = layout.image.format(folder=place, part=half, n=n, i=i)
                write_image(folder / layout.images / path, i)
                split[part].append([path, label, classname])
    to_json(folder / layout.split, split)
    if name == "oxford_pets":
        (folder / "images/Abyssinian_1.mat").touch()  # the archive has one among the images
    return folder


def fgvc_aircraft(root: Path) -> Path:
    folder = root / "fgvc_aircraft"
    variants = ["707-320", "727-200", "A300B4", "Yak-42 of four words"]
    (folder / "images").mkdir(parents=True)
    (folder / "variants.txt").write_text("".join(f"{variant}\n" for variant in variants))
    i = 0
    for part, size in SIZES.items():
        lines = []
        for variant in variants:
            for _ in range(size):
                i += 1
                write_image(folder / f"images/{i:07}.jpg", i)
                lines.append(f"{i:07} {variant}\n")
        (folder / f"images_variant_{part}.txt").write_text("".join(lines))
    return folder


def class_folders(parent: Path, folders, image: str, size: int) -> None:
    """Write `size` images into each folder, with different numbers in their names."""
    for index, folder in enumerate(folders):
        for n in range(index * size, (index + 1) * size):
            write_image(parent / str(folder) / image.format(folder=folder, n=n), n)


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "JPEG")
