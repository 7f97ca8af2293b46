"""Data sets as folders: `SET/train/CLASS/*.png` and `SET/test/CLASS/*.png`.

`fashion_mnist` and `stamps` are read from opened Debian packages, EuroSAT from its folder. The
other sets are drawn.
"""

import gzip
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from PIL import Image

import datasets
from common.errors import UsageError, check_name

MOST = {"train": 48, "test": 60}  # images of a class
SIDE = 256  # pixels; larger images are made smaller
Picture = tuple[str, str, str, Image.Image]  # part, class, name, image

GARMENTS = (
    "T-shirt", "trousers", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
STAMPS = (
    "animals", "clothes", "food", "household", "people",
    "plants", "seasonal", "symbols", "town", "vehicles",
)  # fmt: skip
EUROSAT = {
    "AnnualCrop": "annual crop land",
    "Forest": "forest",
    "HerbaceousVegetation": "herbaceous vegetation land",
    "Highway": "highway or road",
    "Industrial": "industrial buildings",
    "Pasture": "pasture land",
    "PermanentCrop": "permanent crop land",
    "Residential": "residential buildings",
    "River": "river",
    "SeaLake": "sea or lake",
}


def eurosat(sources: Sequence[Path]) -> Iterator[Picture]:
    """EuroSAT, from its folder `2750`."""
    folder = only(sources, "2750/AnnualCrop").parent
    for directory, name in EUROSAT.items():
        files = some((folder / directory).glob("*.jpg"), sum(MOST.values()))
        for place, file in enumerate(files):
            part = "train" if place < MOST["train"] else "test"
            yield part, name, file.stem, Image.open(file)


def fashion_mnist(sources: Sequence[Path]) -> Iterator[Picture]:
    """Fashion-MNIST, from its four files; its own parts."""
    for part, (_, images, labels) in zip(MOST, mnist_parts(sources), strict=True):
        for label, name in enumerate(GARMENTS):
            places = np.flatnonzero(labels == label)
            chosen = np.random.default_rng(0).permutation(places)[: MOST[part]]
            for place in chosen:
                yield part, name, str(place), Image.fromarray(images[place])


def mnist_parts(sources: Sequence[Path]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """`train` and `t10k`, each with its pixels (images, height, width) and labels (images,)."""
    for part in ("train", "t10k"):
        pixels = read_idx(only(sources, f"{part}-images-idx*-ubyte.gz"))
        yield part, pixels, read_idx(only(sources, f"{part}-labels-idx*-ubyte.gz"))


def stamps(sources: Sequence[Path]) -> Iterator[Picture]:
    """Tux Paint's stamps by their top folders."""
    folder = only(sources, "tuxpaint/stamps")
    yield from halves(folder, {name: name for name in STAMPS})


def synthetic(name: str) -> Callable[[Sequence[Path]], Iterator[Picture]]:
    """A data set of the small world, with other images than those of a run."""

    def draw(sources: Sequence[Path]) -> Iterator[Picture]:
        kind: Any = DATASET_REGISTRY.get(name)
        counts = {"train": 48, "val": 0, "test": 30}
        own = {"per_class": counts, "dataset_dir": f"{kind.dataset_dir}_real"}
        with TemporaryDirectory() as root:
            found = dataset(type(f"{name}Real", (kind,), own), Path(root))
            for part, items in (("train", found.train_x), ("test", found.test)):
                for item in items:
                    label = item.classname.replace("_", " ")
                    yield part, label, Path(item.impath).stem, Image.open(item.impath)

    return draw


def dataset(kind: Any, root: Path) -> Any:
    """A dataset of Dassl's form, of this class, in the folder of the datasets."""
    cfg = get_cfg_default()
    datasets.extend_cfg(cfg)
    cfg.DATASET.ROOT = str(root)
    return kind(cfg)


SETS: dict[str, Callable[[Sequence[Path]], Iterator[Picture]]] = {
    "eurosat": eurosat,
    "fashion_mnist": fashion_mnist,
    "stamps": stamps,
    "small_land": synthetic("SmallLand"),
    "small_objects": synthetic("SmallObjects"),
    "small_shapes": synthetic("SmallShapes"),
}


def build(name: str, sources: Sequence[Path], folder: Path) -> Path:
    """Write a data set to FOLDER/NAME, if it is not there; returns that folder.

    Args:
        sources: folders with the opened packages.

    Raises:
        UsageError: a package is not there, or the name is unknown.
    """
    target = folder / name
    if (target / "finished").is_file():
        return target
    check_name(name, SETS, "data set")
    counts: dict[tuple[str, str], int] = {}
    for part, label, stem, image in SETS[name](sources):
        number = counts.get((part, label), 0)
        if number == MOST[part]:
            continue
        counts[part, label] = number + 1
        path = target / part / label / f"{re.sub('[^A-Za-z0-9_-]', '_', stem)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        on_white(image).save(path)
    (target / "finished").touch()
    return target


def only(sources: Sequence[Path], pattern: str) -> Path:
    """The first path below `sources`; UsageError if there is none."""
    for folder in sources:
        for found in sorted(folder.rglob(pattern)):
            return found
    fault = f"no folder of --sources has {pattern}"
    raise UsageError(fault, "open the package that benchmarks/README.md names")


def some(files: Iterable[Path], most: int) -> list[Path]:
    """Random ones of these files, the same in each call."""
    ordered = sorted(files)
    chosen = np.random.default_rng(0).permutation(len(ordered))[:most]
    return [ordered[place] for place in chosen]


def letters(file: Path) -> str:
    """The name of a file without digits and signs."""
    return re.sub("[^a-z]", "", file.stem.lower())


def halves(folder: Path, names: dict[str, str]) -> Iterator[Picture]:
    """The images below folders of classes. Those whose names differ in digits alone, as `lion` and
    `lion-2` do, are in one part.
    """
    for directory, name in names.items():
        files = some((folder / directory).rglob("*.png"), 10**6)
        stems = sorted(set(map(letters, files)))
        order = np.random.default_rng(0).permutation(len(stems))
        trained = {stems[place] for place in order[: len(stems) // 2]}
        for number, file in enumerate(files):
            part = "train" if letters(file) in trained else "test"
            yield part, name, f"{number}_{file.stem}"[:60], Image.open(file)


def on_white(image: Image.Image) -> Image.Image:
    """In RGB, on white where it is transparent, of at most SIDE pixels."""
    image = image.convert("RGBA")
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def read_idx(path: Path) -> np.ndarray:
    """The array of a file of MNIST's form."""
    content = gzip.decompress(path.read_bytes())
    axes = content[3]
    shape = np.frombuffer(content, ">u4", axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
