"""seen.npz beside a model: the images that it has seen, and what for. A calibration asks it.

It holds no image, but a checksum and, unless it was published, a signature of each
(datasets/image_facts.py).
"""

import io
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from dassl.utils import read_image
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from common.arrays import read_arrays
from common.errors import UsageError
from common.files import write_bytes
from common.results import SEEN
from datasets import copies, image_facts

from .images import in_threads

# The last one is in files of an older version
ROLES = ("learned", "chosen", "calibrated", "tested", "unlabelled")
DIGEST = 16  # bytes of the SHA-256 of an image's pixels
SHAPES = {
    "digest": (np.uint8, (DIGEST,)),
    "signature": (np.int8, image_facts.SHAPE),
    "label": (np.int32, ()),
}
SHAPES |= {"group": (np.int32, ()), "role": (np.uint8, ())}
AT_A_TIME = 100  # images that are read
LARGEST = 1 << 30  # bytes of all arrays: two million images
KNOWN = 0.6  # similarity of the signatures of two images of one scene, at least
SURELY = 0.95  # of near-copies only, whatever the layout of a class
HARDLY = 0.95  # of the images are less similar to any image of another scene
MOST_COMPARED = 64  # images of a class that show how similar other scenes of it are


@dataclass(frozen=True)
class SeenImages:
    """Images with the class, the group and the role of each.

    Attributes:
        digest: (images, DIGEST), the first bytes of the SHA-256 of the pixels.
        signature: (images, *image_facts.SHAPE); all 0 where it is not known.
        label: (images,), places in the class names of the model.
        group: (images,): images of one scene have one number. Those of other roles have numbers of
            their own.
        role: (images,), places in ROLES.
    """

    digest: NDArray[np.uint8]
    signature: NDArray[np.int8]
    label: NDArray[np.int32]
    group: NDArray[np.int32]
    role: NDArray[np.uint8]

    @classmethod
    def of(
        cls,
        sha256: Iterable[str],
        signatures: Sequence[Any],
        labels: Iterable[int],
        role: str,
        groups: Iterable[int] | None = None,
    ) -> Self:
        """Images of one role, by the SHA-256 of their pixels (`image_facts.pixels_sha256`)."""
        bytes_of_images = [list(bytes.fromhex(each)[:DIGEST]) for each in sha256]
        count = len(bytes_of_images)
        digests = np.array(bytes_of_images, dtype=np.uint8).reshape(count, DIGEST)
        looks = np.array(signatures, dtype=np.int8).reshape(count, *image_facts.SHAPE)
        numbers = np.fromiter(range(count) if groups is None else groups, np.int32)
        roles = np.full(count, ROLES.index(role), dtype=np.uint8)
        return cls(digests, looks, np.fromiter(labels, np.int32), numbers, roles)

    @staticmethod
    def of_files(items: Sequence[Any], role: str) -> "SeenImages":
        """Image files of one role: items with `impath` and `label`. Those that cannot be read are
        left out. Each is a group of its own.
        """
        return NotedImages(items).seen(items, role)

    def __len__(self) -> int:
        return len(self.role)

    def __add__(self, other: "SeenImages") -> "SeenImages":
        groups = np.concatenate([self.group, other.group + 1 + max(self.group.max(initial=-1), 0)])
        joined = {
            name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in SHAPES
        }
        return SeenImages(**joined | {"group": groups})

    def part(self, inside: NDArray[np.bool_]) -> "SeenImages":
        return SeenImages(**{name: getattr(self, name)[inside] for name in SHAPES})

    def of_role(self, *roles: str) -> "SeenImages":
        return self.part(np.isin(self.role, [ROLES.index(role) for role in roles]))

    def without_signatures(self) -> "SeenImages":
        """The same without a trace of how the images look."""
        return replace(self, signature=np.zeros_like(self.signature))

    def equal(self, images: "SeenImages") -> NDArray[np.bool_]:
        """(images,): whether the pixels of an image are those of one of these."""
        known = {row.tobytes() for row in self.digest}
        return np.array([row.tobytes() in known for row in images.digest], dtype=bool)

    def similar(self, images: "SeenImages") -> NDArray[np.bool_]:
        """(images,): whether an image is a near-copy of one of these that has its class."""
        found = np.zeros(len(images), dtype=bool)
        looks = self.signature.any(axis=(1, 2, 3))
        for label in np.unique(images.label):
            asked = np.flatnonzero(images.label == label)
            own = np.flatnonzero((self.label == label) & looks)
            threshold = self.threshold(own)
            for place in asked:
                pairs = np.stack([np.full(len(own), place), own], axis=1)
                scores = image_facts.similarities(images.signature, pairs, self.signature)
                found[place] = bool((scores > threshold).any())
        return found

    def threshold(self, own: NDArray[np.int64]) -> float:
        """The similarity from which on an image is a near-copy of one of these places, which have
        one class: what hardly any of them has with an image of another scene. Pairs that are surely
        near-copies are of one scene, also if nobody has looked for groups."""
        if len(own) < 2:
            return KNOWN
        some = own[copies.evenly(len(own), MOST_COMPARED)]
        first, second = np.triu_indices(len(some), 1)
        scores = image_facts.similarities(
            self.signature, np.stack([some[first], some[second]], axis=1)
        )
        same_scene = self.group[some[first]] == self.group[some[second]]
        scores[same_scene | (scores > SURELY)] = 0
        nearest = np.zeros(len(some))
        np.maximum.at(nearest, first, scores)
        np.maximum.at(nearest, second, scores)
        return max(KNOWN, float(np.quantile(nearest, HARDLY)))

    def write(self, folder: Path) -> None:
        content = io.BytesIO()
        np.savez_compressed(content, **{name: getattr(self, name) for name in SHAPES})
        write_bytes(folder / SEEN, content.getvalue())

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The images that a model in this folder has seen; None if the folder does not
        say it. UsageError for a damaged file.
        """
        file = folder / SEEN
        if not file.is_file():
            return None
        try:
            arrays = read_arrays(file, SHAPES, LARGEST)
            check_seen(arrays)
        except Exception as error:  # of any kind: see `read_arrays`
            raise UsageError(f"{file} is damaged", "restore it, or delete it", file) from error
        return cls(**arrays)


class NotedImages:
    """What `SeenImages` keeps of image files, noted when an image is read for something else. The
    worker processes of a loader share the arrays.

    Args:
        items: with `impath`.
        others: items of which no signature is kept.
        max_pixels: limit of an image that is read for its note alone.
    """

    def __init__(
        self, items: Sequence[Any], others: Sequence[Any] = (), max_pixels: int | None = None
    ):
        paths = dict.fromkeys(item.impath for item in items)
        self.with_signature = len(paths)
        paths |= dict.fromkeys(item.impath for item in others)
        self.places = {path: place for place, path in enumerate(paths)}
        self.max_pixels = max_pixels
        count = len(paths)
        self.digest = torch.zeros(count, DIGEST, dtype=torch.uint8).share_memory_()
        self.signature = torch.zeros(count, *image_facts.SHAPE, dtype=torch.int8).share_memory_()
        self.is_noted = torch.zeros(count, dtype=torch.bool).share_memory_()

    def note(self, path: str, image: Image.Image) -> None:
        """Note a decoded image, turned as its EXIF data says, unless it is noted or is none of
        these.
        """
        place = self.places.get(path)
        if place is None or self.is_noted[place]:
            return
        with suppress(Exception):  # damaged EXIF data of a good image
            if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                image = ImageOps.exif_transpose(image)
        sha256 = bytes.fromhex(image_facts.pixels_sha256(image))
        self.digest[place] = torch.tensor(list(sha256[:DIGEST]), dtype=torch.uint8)
        if place < self.with_signature:
            self.signature[place] = torch.from_numpy(image_facts.signature(image))
        self.is_noted[place] = True  # last, as a worker may be killed

    def read(self, items: Sequence[Any]) -> None:
        """Read the images that are not noted, as far as they can be read."""

        def read_part(part: Sequence[Any]) -> None:
            for item in part:
                with suppress(OSError, UsageError):
                    self.note(item.impath, read_image(item.impath, self.max_pixels))

        missing = [item for item in items if not self.is_noted[self.places[item.impath]]]
        for _ in in_threads(read_part, missing, AT_A_TIME, on_gpu=False):
            pass

    def seen(self, items: Sequence[Any], role: str) -> SeenImages:
        """The images of one role that can be read, some of those noted: items with `impath` and
        `label`. Each is a group of its own.
        """
        self.read(items)
        items = [item for item in items if self.is_noted[self.places[item.impath]]]
        places = [self.places[item.impath] for item in items]
        labels = np.array([item.label for item in items], dtype=np.int32)
        groups = np.arange(len(items), dtype=np.int32)
        roles = np.full(len(items), ROLES.index(role), dtype=np.uint8)
        digests = self.digest.numpy()[places]
        return SeenImages(digests, self.signature.numpy()[places], labels, groups, roles)


def check_seen(arrays: dict[str, Any]) -> None:
    """Raise ValueError for arrays of other shapes or types."""
    count = len(arrays["role"])
    for name, (kind, shape) in SHAPES.items():
        if arrays[name].dtype != kind or arrays[name].shape != (count, *shape):
            raise ValueError(f"{name} has another type or shape")
    if count and arrays["role"].max() >= len(ROLES):
        raise ValueError("a role is out of range")
