"""Miniatures of the published datasets on a server: archives with the original names and
folders.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from archives import tar, zipped
from serving import serving
from trees import PLACES, WNIDS, build_tree

from common import download
from datasets.preparing.sources import downloadable, images_by_split

V2 = "imagenetv2-matched-frequency-format-val"
# The archive of each dataset: {folder of the dataset: its path in there}
PACKED = {name: (facts["archive"], facts["members"]) for name, facts in PLACES.items()}


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def listing(folder: Path, places) -> list[tuple[str, bytes]]:
    """The class folder and the content of each image in these folders; ImageNet's archive has its
    own image names.
    """
    files = [(path, data) for place in places for path, data in files_below(folder / place).items()]
    return sorted((path.rpartition("/")[0], data) for path, data in files if path != "README.txt")


def packed(name: str, made: Path, folder: Path) -> dict[str, bytes]:
    """The published files, by name, of a dataset made by `build_tree`."""
    folder.mkdir(exist_ok=True)
    if name == "imagenet":
        return packed_imagenet(made, folder)
    archive, places = PACKED[name]
    members = {}
    for place, path in places.items():
        members |= {
            f"{path}/{below}": content for below, content in files_below(made / place).items()
        }
    write = zipped if archive.endswith(".zip") else tar
    contents = {
        archive: write(
            folder / archive, members, *(["w"] if archive.endswith(".tar") else [])
        ).read_bytes()
    }
    if name == "caltech101":
        inside = {
            f"caltech-101/{archive}": contents[archive],
            "caltech-101/Annotations.tar": b"not wanted",
        }
        contents = {"caltech-101.zip": zipped(folder / "caltech-101.zip", inside).read_bytes()}
    texts = [*made.glob("split_zhou_*.json"), *made.glob("classnames.txt")]
    return contents | {path.name: path.read_bytes() for path in texts}


def packed_imagenet(made: Path, folder: Path) -> dict[str, bytes]:
    """Tars of tars, a flat tar, and the development kit with other class numbers than here."""
    train_images = {}
    for wnid in WNIDS:
        path = tar(folder / wnid, files_below(made / "images/train" / wnid), "w")
        train_images[f"{wnid}.tar"] = path.read_bytes()
    numbers = {wnid: number for number, wnid in enumerate(reversed(WNIDS), start=1)}
    val_images = sorted(files_below(made / "images/val").items(), key=lambda item: item[0][::-1])
    flat = {
        f"ILSVRC2012_val_{n:08}.JPEG": content for n, (_, content) in enumerate(val_images, start=1)
    }
    truth = "".join(f"{numbers[path.split('/')[0]]}\n" for path, _ in val_images)
    from scipy.io import savemat

    fields = [
        ("ILSVRC2012_ID", object),
        ("WNID", object),
        ("words", object),
        ("num_children", object),
    ]
    synsets = [(number, wnid, "a, b", 0) for wnid, number in numbers.items()] + [
        (1001, "n00001740", "entity", 4)
    ]
    savemat(folder / "meta.mat", {"synsets": np.array(synsets, dtype=fields)[:, None]})
    kit = {
        "meta.mat": (folder / "meta.mat").read_bytes(),
        "ILSVRC2012_validation_ground_truth.txt": truth.encode(),
    }
    kit = {f"ILSVRC2012_devkit_t12/data/{name}": content for name, content in kit.items()}
    return {
        "classnames.txt": (made / "classnames.txt").read_bytes(),
        "ILSVRC2012_img_train.tar": tar(folder / "train", train_images, "w").read_bytes(),
        "ILSVRC2012_img_val.tar": tar(folder / "val", flat, "w").read_bytes(),
        "ILSVRC2012_devkit_t12.tar.gz": tar(folder / "kit", kit).read_bytes(),
    }


@contextmanager
def publishing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """`publish(name)` builds a miniature, serves its files, and sets their sizes and checksums in
    the dataset's class.

    It returns the folder that was packed. The server is `publish.server`; the disk is large.
    """
    monkeypatch.setattr(download, "PAUSE", 0)
    room = shutil.disk_usage(tmp_path)._replace(free=10**13)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: room)
    with serving({}) as server:

        def publish(name):
            made = build_tree(name, tmp_path / "made")
            contents = packed(name, made, tmp_path / "packed")
            source = downloadable()[name]
            for file in source.files:
                content = contents.get(file.name, b"")
                server.files[f"/{name}/{file.name}"] = content
                checksum = hashlib.md5(content).hexdigest()
                change_file(
                    monkeypatch, name, file.name, bytes=len(content), md5=checksum, sha256=""
                )
            parts = images_by_split(source.read_quietly(tmp_path / "made"))
            monkeypatch.setattr(
                source.dataset, "counts", tuple(len(items) for items in parts.values())
            )
            monkeypatch.setattr(source.dataset, "n_classes", 4)
            return made

        publish.server = server
        yield publish


def change_file(monkeypatch: pytest.MonkeyPatch, dataset: str, name: str, **facts) -> None:
    """Change what a dataset's class states about one of its files."""
    kind = downloadable()[dataset].dataset
    files = tuple(replace(file, **facts) if file.name == name else file for file in kind.files)
    monkeypatch.setattr(kind, "files", files)


def all_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
