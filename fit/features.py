"""The backbones of a fit, their price, and the feature of each image by each of them. A feature is
computed once: more images in a later call, or a killed call, cost only what is new.
"""

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from dassl.utils import decoders
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from clip import CLIP, load_backbone, reads_texts, weight_file, weights_sha256
from clip.digest import Key
from common.cache import DIGEST, DiskCache, Table
from common.errors import UsageError
from datasets import image_facts
from datasets import sentences as sentence_files
from inference.bank import Bank, BankFiles
from inference.batches import Reader, read_batch
from inference.classifier import PromptedClassifier
from inference.description import zero_shot_description
from inference.images import in_threads
from inference.options import LoadOptions
from trainers.base import TEMPLATE
from trainers.base.prompted import PromptedCLIP
from trainers.base.teacher import cache_folder
from trainers.base.trainer import usable

from .candidates import VISION
from .heads import Heads, reads_names
from .options import FitRequest
from .read_images import Photo, learned_classes

LOOK = "sha256", "pixels_sha256", "signature", "camera", "second"
PART = 256  # images of a file: what a killed call loses at most
BATCH = 32  # images at a time
LIMIT = 20e9  # bytes of all files
AGREEMENT = 0.999  # the cosine of a feature in bf16 and in fp32, at least


class EncodedImage(NamedTuple):
    """An image's facts in the bank."""

    pixels_sha256: str  # of its decoded pixels
    signature: NDArray[np.int8]  # `image_facts.signature`
    taken: image_facts.Taken  # by which camera, and when
    feature: Tensor  # (width,)


def features_of(photos: Sequence[Photo], rows: Mapping[str, EncodedImage]) -> Tensor:
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

    def of(self, keys: Mapping[str, str]) -> tuple[dict[str, EncodedImage], dict[str, str]]:
        """The row of each image by its path, and the fault of each other image.

        An image whose file has another checksum by now has the fault that it changed.

        Args:
            keys: the SHA-256 of each file by its path; empty for a link to nothing.
        """
        kept = self.kept(keys.values())
        damaged = dict[str, str]()
        new = [path for path, key in keys.items() if key not in kept]
        with tqdm(
            total=len(new), desc="features", unit="image", disable=None if new else True
        ) as bar:
            for start in range(0, len(new), PART):
                rows: dict[str, EncodedImage] = {}
                for found, faults in in_threads(
                    partial(self.read, keys),
                    new[start : start + PART],
                    BATCH,
                    self.classifier.on_gpu,
                ):
                    rows |= {keys[path]: row for path, row in found.items()}
                    damaged |= faults
                    bar.update(len(found) + len(faults))
                self.keep(rows)
                kept |= rows
        return {path: kept[key] for path, key in keys.items() if key in kept}, damaged

    def read(
        self, keys: Mapping[str, str], paths: Sequence[str]
    ) -> tuple[dict[str, EncodedImage], dict[str, str]]:
        """The row of each image by its path, and the fault of each other image."""
        files = list(map(Path, paths))
        reader = Reader(digests=True, looks=True)
        unread, inputs = read_batch(files, [self.classifier], reader.content, reader.image)
        features = iter(self.encode(inputs[0]) if inputs else ())
        rows = {}
        faults = {}
        for path, file, fault in zip(paths, files, unread, strict=True):
            feature = None if fault else next(features)
            if not os.path.exists(path):
                faults[path] = f"{path} is a link to a file that is gone"
            elif reader.digests.get(file, keys[path]) != keys[path]:
                self.changed = True
                faults[path] = f"{path} changed while fit ran"
            elif feature is None:
                faults[path] = fault
            elif not feature.isfinite().all():
                faults[path] = f"the feature of {path} is not finite"
            else:
                rows[path] = EncodedImage(*reader.looks[file], feature)
        return rows, faults

    # On the disk: a table with a row for each image

    def keep(self, rows: Mapping[str, EncodedImage]) -> None:
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

    def kept(self, keys: Iterable[str]) -> dict[str, EncodedImage]:
        """The rows of these files that an earlier call has left."""
        found = {}
        for key, row in self.table.get(bytes.fromhex(key) for key in keys).items():
            pixels = row["pixels"].tobytes().hex()
            taken = image_facts.Taken(int(row["camera"]), float(row["second"]))
            feature = torch.from_numpy(row["feature"].copy())
            found[key.hex()] = EncodedImage(pixels, row["signature"].copy(), taken, feature)
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


TIMED = 8  # images of a measurement
ROUNDS = 3  # of which the fastest counts


@dataclass(frozen=True)
class Source:
    """A backbone, and what it says of the images.

    Attributes:
        request: the fit with this backbone alone.
        rows: of the images that can be read, by path.
        damaged: the faults of the other images, by path.
    """

    request: FitRequest
    heads: Heads
    rows: Mapping[str, EncodedImage]
    damaged: Mapping[str, str]
    encoder: Features


def heads_of(request: FitRequest, names: Sequence[str], clip: CLIP | None = None) -> Heads:
    """The heads on zero-shot CLIP for these classes; the backbone may be loaded already."""
    sentences = sentence_files.read_sentences(request.sentences, names)
    name = request.backbone
    clip = clip or load_backbone(name)
    if reads_texts(clip):
        zero_shot = PromptedClassifier.zero_shot(
            name, names, device=request.device, sentences=sentences, clip=clip
        )
        return Heads(zero_shot, request.seed)
    description = zero_shot_description(clip, name, names, TEMPLATE, {})
    options = LoadOptions(backbone=name, device=request.device)
    nameless = replace(description, method=VISION)
    return Heads(PromptedClassifier(nameless, None, name, options, clip), request.seed)


def sources_of(
    request: FitRequest, found: Sequence[Photo], known: Mapping[str, float]
) -> tuple[list[Source], dict[str, float]]:
    """Each backbone that is fast enough, with the features of the images; and the milliseconds of
    an image by each backbone, if there are several or a limit.

    Args:
        known: milliseconds that an earlier call has measured.

    Raises:
        UsageError: two backbones have the same weights, or none is fast enough.
    """
    check_different(request.backbones)
    names = sorted(learned_classes(found))
    sources = []
    ms = {}
    for name in request.backbones:
        own = replace(request, backbones=(name,))
        heads = heads_of(own, names)
        encoder = Features(heads.zero_shot, heads.tower)
        if len(request.backbones) > 1 or request.max_ms:
            ms[name] = known.get(name) or milliseconds(encoder)
        if request.max_ms and ms[name] > request.max_ms:
            print(f"Left out: {name} takes {ms[name]:.1f} ms for an image")
            continue
        sources.append(Source(own, heads, *read_features(found, encoder), encoder))
    if not sources:
        fastest = min(ms, key=ms.__getitem__)
        raise UsageError(
            f"no backbone takes at most {request.max_ms:g} ms for an image here",
            f"raise --max-ms: {fastest} takes {ms[fastest]:.1f}",
        )
    check_texts(request, sources)
    return sources, ms


def check_texts(request: FitRequest, sources: Sequence[Source]) -> None:
    """Raise UsageError for an option that needs texts, if no backbone reads any."""
    if any(source.heads.reads_names for source in sources):
        return
    asked = [name for name in request.methods if reads_names(name)]
    asked += ["--sentences"] if request.sentences else []
    if asked:
        fault = f"{asked[0]} needs texts, and {request.backbone} has no text tower"
        raise UsageError(fault, "leave it out, or choose a CLIP as --backbone")


def check_different(backbones: Sequence[str]) -> None:
    """Raise UsageError if two names mean the same weights."""
    known: dict[str, str] = {}
    for name in backbones if len(backbones) > 1 else ():
        sha256 = weights_sha256(name)
        if sha256 in known:
            fault = f"{known[sha256]} and {name} have the same weights"
            raise UsageError(fault, "name each backbone once")
        known[sha256] = name


def milliseconds(encoder: Features) -> float:
    """The time of the image tower for an image, in batches of TIMED, on this machine."""
    size = encoder.classifier.cfg.INPUT.SIZE
    images = torch.zeros(TIMED, 3, *size)
    encoder.encode(images)  # which also fills caches
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        encoder.encode(images)  # its result is on the CPU: a GPU has finished
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds) / TIMED


def price(name: str, ms: float) -> dict[str, Any]:
    """The price of a backbone, for people: its weight file and its time."""
    megabytes = weight_file(name).stat().st_size / 1e6
    return {"megabytes": megabytes, "ms": ms, "images_per_second": 1000 / ms}


def read_by_all(sources: Sequence[Source]) -> tuple[dict[str, EncodedImage], dict[str, str]]:
    """The rows of the first backbone, of images that all can use; and the faults of others."""
    rows = sources[0].rows
    used = {path: rows[path] for path in rows if all(path in one.rows for one in sources)}
    return used, {path: fault for one in sources for path, fault in one.damaged.items()}


def read_features(
    photos: Sequence[Photo], encoder: Features
) -> tuple[dict[str, EncodedImage], dict[str, str]]:
    """`Features.of` the photos; of those in a bank, it is read there."""
    rows, damaged = encoder.of({photo.path: photo.sha256 for photo in photos if not photo.bank})
    for folder in sorted({Path(photo.bank) for photo in photos if photo.bank}):
        bank = Bank(folder)
        behind = bank.check(encoder.classifier)
        wanted = {photo.path for photo in photos if photo.bank == str(folder)}
        for row in BankFiles(bank.files).images("path", *LOOK):
            path = row["path"]
            if path in wanted and row["fault"]:
                damaged[path] = row["fault"]
            elif path in wanted:
                behind.check_width(len(row["before"]))
                rows[path] = row_of(row)
    return rows, damaged


def row_of(known: Mapping[str, Any]) -> EncodedImage:
    """The facts of an image in a bank."""
    signature = np.zeros(image_facts.SHAPE, dtype=np.int8)
    if "signature" in known:
        signature = np.array(known["signature"], dtype=np.int8).reshape(image_facts.SHAPE)
    taken = image_facts.Taken(known.get("camera", 0), known.get("second", float("nan")))
    pixels = known.get("pixels_sha256") or known["sha256"]
    return EncodedImage(pixels, signature, taken, torch.from_numpy(known["before"].copy()))
