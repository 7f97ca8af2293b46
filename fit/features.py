"""The feature of each image, computed once: more images in a later call, or a killed call, cost
only what is new.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from dassl.utils import decoders
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from clip.digest import Key
from common.cache import DIGEST, DiskCache, Table
from datasets import image_facts
from inference.batches import Reader, read_batch
from inference.classifier import PromptedClassifier
from inference.images import in_threads
from trainers.base.build import usable
from trainers.base.prompted import PromptedCLIP
from trainers.base.teacher import cache_folder

from .rows import Photo

PART = 256  # images of a file: what a killed call loses at most
BATCH = 32  # images at a time
LIMIT = 20e9  # bytes of all files
AGREEMENT = 0.999  # the cosine of a feature in bf16 and in fp32, at least


class Row(NamedTuple):
    """An image's facts in the bank."""

    pixels_sha256: str  # of its decoded pixels
    signature: NDArray[np.int8]  # `image_facts.signature`
    taken: image_facts.Taken  # by which camera, and when
    feature: Tensor  # (width,)


def features_of(photos: Sequence[Photo], rows: Mapping[str, Row]) -> Tensor:
    """(photos, width), on the CPU."""
    return torch.stack([rows[photo.path].feature for photo in photos])


class Features:
    """Features by the frozen image tower of a classifier, of images as in a test.

    They are kept by the checksum of the image file, in files of at most PART images. They are
    computed in bf16 if this machine has units for it, and if the features of four images of noise
    agree with those in fp32.

    Args:
        model: whose features they are.
    """

    def __init__(self, classifier: PromptedClassifier, model: PromptedCLIP):
        self.classifier = classifier
        self.model = model
        numbers = torch.Generator().manual_seed(0)
        noise = torch.randn(4, 3, *classifier.cfg.INPUT.SIZE, generator=numbers)
        exact = self.run_tower(noise, False)
        fast = self.run_tower(noise, True)
        has_units = usable("bf16", classifier.device) == "bf16"
        self.in_bf16 = has_units and float(torch.cosine_similarity(exact, fast).min()) > AGREEMENT
        key = Key(
            "features of a fit",
            8,
            versions={"torch": torch.__version__, **decoders()},
            device=classifier.device.type,
            reading=classifier.cfg.INPUT,
        )
        # The features of noise show the activation, the heads, and how this machine rounds.
        noise = fast if self.in_bf16 else exact
        key.add_tensors(self.model.image_tensors() | {"noise": noise})
        self.facts = str(key)[:16]
        cache = DiskCache(cache_folder(), "features", "image features", LIMIT)
        self.table = Table(cache, self.facts, row_type(exact.shape[1]))
        self.changed = False  # whether an image had another checksum when it was decoded

    def encode(self, images: Tensor) -> Tensor:
        """(batch, 3, H, W) -> (batch, width), fp32, on the CPU; not normalised."""
        return self.run_tower(images, self.in_bf16)

    def run_tower(self, images: Tensor, in_bf16: bool) -> Tensor:
        device = self.classifier.device

        def compute(part: Tensor) -> Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled=in_bf16):
                return self.model.image_output(part).feature.float()

        return self.classifier._each(images, compute, self.classifier.width)

    def of(self, keys: Mapping[str, str]) -> tuple[dict[str, Row], dict[str, str]]:
        """The row of each image by its path, and the fault of each other image.

        An image whose file has another checksum by now has the fault that it changed.

        Args:
            keys: the SHA-256 of each file by its path; empty for a link to nothing.
        """
        kept = self.kept(keys.values())
        damaged = dict[str, str]()
        new = [path for path, key in keys.items() if key not in kept]
        on_gpu = self.classifier.device.type == "cuda"
        with tqdm(
            total=len(new), desc="features", unit="image", disable=None if new else True
        ) as bar:
            for start in range(0, len(new), PART):
                rows: dict[str, Row] = {}
                for found in in_threads(
                    partial(self.read, keys), new[start : start + PART], BATCH, on_gpu
                ):
                    rows |= {keys[path]: row for path, row in found.items() if isinstance(row, Row)}
                    damaged |= {path: row for path, row in found.items() if isinstance(row, str)}
                    bar.update(len(found))
                self.keep(rows)
                kept |= rows
        return {path: kept[key] for path, key in keys.items() if key in kept}, damaged

    def read(self, keys: Mapping[str, str], paths: Sequence[str]) -> dict[str, Row | str]:
        """The row of each image, or its fault."""
        files = list(map(Path, paths))
        reader = Reader(digests=True, looks=True)
        faults, inputs = read_batch(files, [self.classifier], reader.content, reader.image)
        features = iter(self.encode(inputs[0]) if inputs else ())
        found: dict[str, Row | str] = {}
        for path, file, fault in zip(paths, files, faults, strict=True):
            feature = None if fault else next(features)
            if not os.path.exists(path):
                found[path] = f"{path} is a link to a file that is gone"
            elif reader.digests.get(file, keys[path]) != keys[path]:
                self.changed = True
                found[path] = f"{path} changed while fit ran"
            elif feature is None:
                found[path] = fault
            elif not feature.isfinite().all():
                found[path] = f"the feature of {path} is not finite"
            else:
                found[path] = Row(*reader.looks[file], feature)
        return found

    # On the disk: a table with a row for each image

    def keep(self, rows: Mapping[str, Row]) -> None:
        if not rows:
            return
        keys = [bytes.fromhex(key) for key in rows]
        content = np.zeros(len(rows), self.table.row_type)
        content["key"] = [list(key) for key in keys]
        content["pixels"] = [list(bytes.fromhex(row.pixels_sha256)) for row in rows.values()]
        content["signature"] = [row.signature for row in rows.values()]
        content["camera"] = [row.taken.camera for row in rows.values()]
        content["second"] = [row.taken.second for row in rows.values()]
        content["feature"] = torch.stack([row.feature for row in rows.values()]).numpy()
        self.table.put(keys, [content])

    def kept(self, keys: Iterable[str]) -> dict[str, Row]:
        """The rows of these files that an earlier call has left."""
        found = {}
        for key, row in self.table.get(bytes.fromhex(key) for key in keys).items():
            pixels = row["pixels"].tobytes().hex()
            taken = image_facts.Taken(int(row["camera"]), float(row["second"]))
            feature = torch.from_numpy(row["feature"].copy())
            found[key.hex()] = Row(pixels, row["signature"].copy(), taken, feature)
        return found


def row_type(width: int) -> np.dtype[Any]:
    """The bytes of an image in the table."""
    hashes = [("key", np.uint8, DIGEST), ("pixels", np.uint8, DIGEST)]
    look = [
        ("signature", np.int8, image_facts.SHAPE),
        ("camera", np.uint64),
        ("second", np.float64),
    ]
    return np.dtype([*hashes, *look, ("feature", np.float32, width)])
