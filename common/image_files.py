"""Which files of a folder are images, by their endings."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from .names import printable

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
