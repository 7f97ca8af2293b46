"""Small synthetic datasets: a source of many classes, shifted variants of it, and five targets.

A set is drawn once, when it is first used, as image files and a split file in the same layout as
every other dataset. The small CLIP (`--backbone small`) was pre-trained on similar drawings in a
plainer style.
"""

import json
import os
import zlib
from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
from dassl.data.datasets import DATASET_REGISTRY

from common.errors import UsageError
from common.files import new_folder

from ..base import DatasetError, FewShotDataset
from .drawing import COLOURS, FEATURES, GROUNDS, SHAPES, TEXTURES, Style, Subject, draw


class SmallWorldSet(FewShotDataset):
    """A synthetic dataset, drawn under DATASET.ROOT if it is missing. A subclass sets its subjects
    and its style.
    """

    image_dir = "images"
    split_file = "split.json"
    is_synthetic = True
    subjects: tuple[Subject, ...] = ()  # one for each class
    style = Style()
    per_class = {"train": 16, "val": 4, "test": 40}

    def __init__(self, cfg, images: bool = True):
        self.prepare(Path(os.path.expanduser(cfg.DATASET.ROOT)).absolute() / self.dataset_dir)
        super().__init__(cfg, images)

    @property
    def remedy(self) -> str:
        return f"delete {self.root}, then it is drawn again"

    how_to_replace = remedy

    @classmethod
    def prepare(cls, folder: Path) -> None:
        """Draw the set if it is missing: in another folder, then renamed. If several processes do,
        the first one wins. Raises DatasetError if the folder is not writable, or has other
        files.
        """
        split = folder / cls.split_file
        if split.is_file():
            return
        try:
            with new_folder(folder) as stage:
                cls.draw_all(stage)
        except UsageError as error:
            if not split.is_file():  # else another process has drawn it
                remedy = (
                    "set --root (DATA for scripts) to another folder, or move this one elsewhere"
                )
                raise DatasetError(
                    f"cannot draw {cls.__name__}: {error.fault}", remedy, folder
                ) from None

    @classmethod
    def draw_all(cls, folder: Path) -> None:
        """Draw every image, each from its own seed, and write the split."""
        from tqdm import tqdm  # here, as each command would wait for it

        split: dict[str, list] = {part: [] for part in cls.per_class}
        numbers = [(part, number) for part, size in cls.per_class.items() for number in range(size)]
        for label, subject in enumerate(
            tqdm(cls.subjects, f"drawing {cls.__name__}", leave=False, disable=None)
        ):
            place = folder / cls.image_dir / subject.words.replace(" ", "_")
            place.mkdir(parents=True)
            for index, (part, number) in enumerate(numbers):
                rng = np.random.default_rng([zlib.crc32(cls.__name__.encode()), label, index])
                file = place / f"{part}_{number:02}.png"
                draw(subject, cls.style, rng).save(file)
                split[part].append([f"{place.name}/{file.name}", label, subject.words])
        (folder / cls.split_file).write_text(json.dumps(split))


def shuffled(subjects: Iterable[Subject]) -> tuple[Subject, ...]:
    """In a fixed random order, so that base and new classes have the same distribution."""
    subjects = sorted(subjects, key=lambda subject: subject.words)
    return tuple(subjects[index] for index in np.random.default_rng(0).permutation(len(subjects)))


def objects(
    colours: tuple[str, ...], textures: tuple[str, ...], shapes: tuple[str, ...]
) -> tuple[Subject, ...]:
    """One object per combination of colour and texture; any two of its three attributes identify
    it.
    """
    pairs = product(enumerate(colours), enumerate(textures))
    return shuffled(
        Subject(colour, texture, shapes[(i + j) % len(shapes)])
        for (i, colour), (j, texture) in pairs
    )


MESSY = Style(
    scale=(0.4, 0.75),
    turn=40,
    shift=0.22,
    noise=(15, 45),
    blur=(0.3, 1.2),
    contrast=(0.5, 0.9),
    clutter=10,
    rough=30,
)


@DATASET_REGISTRY.register()
class SmallSource(SmallWorldSet):
    """The source: 72 classes, each a colour, a texture and a shape."""

    dataset_dir = "small_source"
    subjects = shuffled(
        Subject(*attributes)
        for attributes in product(
            ("red", "orange", "yellow", "green", "blue", "purple"),
            ("plain", "striped", "checked", "dotted"),
            ("circle", "star", "triangle"),
        )
    )
    per_class = SmallWorldSet.per_class | {"test": 20}
    style = Style(
        scale=(0.45, 0.9),
        turn=30,
        shift=0.15,
        noise=(5, 30),
        blur=(0, 1),
        contrast=(0.5, 1),
        clutter=4,
    )


@DATASET_REGISTRY.register()
class SmallSourceNoisy(SmallSource):
    """The source's classes under heavy noise and blur."""

    dataset_dir = "small_source_noisy"
    style = replace(SmallSource.style, noise=(30, 60), blur=(0.8, 1.6), clutter=0)


@DATASET_REGISTRY.register()
class SmallSourceOutline(SmallSource):
    """The source's classes as outlines."""

    dataset_dir = "small_source_outline"
    style = replace(SmallSource.style, outline=True)


@DATASET_REGISTRY.register()
class SmallObjects(SmallWorldSet):
    """16 objects, each a colour, a texture and a shape, on a cluttered background. Used by the
    demo.
    """

    dataset_dir = "small_objects"
    subjects = objects(
        ("red", "green", "blue", "white"),
        ("striped", "dotted", "gridded", "wavy"),
        ("square", "heart", "cross", "hexagon"),
    )
    style = MESSY


@DATASET_REGISTRY.register()
class SmallShapes(SmallWorldSet):
    """16 shapes of any colour and texture. The word crescent is not in the pre-training data."""

    dataset_dir = "small_shapes"
    subjects = shuffled(Subject(shape=shape) for shape in SHAPES)
    style = Style(
        scale=(0.5, 0.85),
        turn=30,
        shift=0.2,
        noise=(10, 30),
        blur=(0.2, 0.8),
        contrast=(0.6, 1),
        clutter=4,
    )


@DATASET_REGISTRY.register()
class SmallTextures(SmallWorldSet):
    """10 textures of any colour that fill the image. The word zigzag is not in the pre-training
    data.
    """

    dataset_dir = "small_textures"
    subjects = shuffled(
        Subject(texture=texture, shape="pattern") for texture in TEXTURES if texture != "plain"
    )
    style = Style(turn=60, periods=(4, 8), noise=(15, 40), blur=(0.3, 1), contrast=(0.4, 0.9))


@DATASET_REGISTRY.register()
class SmallCounts(SmallWorldSet):
    """20 classes: one to five objects of four shapes."""

    dataset_dir = "small_counts"
    subjects = shuffled(
        Subject(shape=shape, count=count)
        for shape in ("square", "star", "ring", "heart")
        for count in range(1, 6)
    )
    style = Style(
        scale=(0.4, 0.8),
        turn=60,
        shift=0.2,
        noise=(5, 30),
        blur=(0, 0.8),
        contrast=(0.5, 0.9),
        clutter=4,
    )


@DATASET_REGISTRY.register()
class SmallLand(SmallWorldSet):
    """16 kinds of land seen from above, through haze."""

    dataset_dir = "small_land"
    subjects = shuffled(
        Subject(ground=ground, feature=feature)
        for ground in ("forest", "grassland", "desert", "farmland")
        for feature in ("river", "road", "lake", "village")
    )
    style = Style(hue=30, noise=(10, 35), blur=(0.4, 1.4), contrast=(0.3, 0.8), haze=0.6)


@DATASET_REGISTRY.register()
class SmallTuning(SmallWorldSet):
    """16 objects like SmallObjects with other attributes: the settings for the small CLIP were
    chosen on it.
    """

    dataset_dir = "small_tuning"
    subjects = objects(
        ("orange", "purple", "brown", "pink"),
        ("plain", "checked", "bricked", "speckled"),
        ("drop", "star", "ring", "arrow"),
    )
    style = MESSY


def vocabulary() -> tuple[list[str], list[str]]:
    """The nouns and the adjectives of the synthetic world: class names, shapes and grounds; colours
    and textures.
    """
    sets = (SmallSource, SmallObjects, SmallTextures, SmallCounts, SmallLand, SmallTuning)
    names = (subject.words for kind in sets for subject in kind.subjects)
    nouns = list(dict.fromkeys([*SHAPES, *GROUNDS, *FEATURES, *names]))
    return nouns, [*COLOURS, *TEXTURES]
