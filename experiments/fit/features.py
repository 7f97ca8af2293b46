"""The feature of each image, computed once: more images in a later call, or a killed call, cost only what is new."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from dassl.utils import read_image
from torch import Tensor
from tqdm import tqdm

from clip.digest import add_tensors, as_bytes
from common.cache import DIGEST, DiskCache
from common.errors import UsageError
from inference.classifier import PromptedClassifier
from trainers.base.build import usable
from trainers.base.prompted import PromptedCLIP
from trainers.base.teacher import cache_folder

PART = 256  # images of a file: what a killed call loses at most
BATCH = 32  # images at a time
LIMIT = 20e9  # bytes of all files
AGREEMENT = 0.999  # the cosine of a feature in bf16 and in fp32, at least

Row = tuple[str, Tensor]  # SHA-256 of the decoded pixels, feature (width,)


class Features:
    """Features by the frozen image tower of a classifier, of images as in a test.

    They are kept by the checksum of the image file, in files of at most PART images. They are computed in bf16 if this
    machine has units for it, and if the features of four images of noise agree with those in fp32.

    Args:
        model: whose features they are.
    """

    def __init__(self, classifier: PromptedClassifier, model: PromptedCLIP, cache: Path | None = None):
        self.classifier, self.model = classifier, model
        self.cache = DiskCache(cache or cache_folder(), "features", "image features", LIMIT)
        digest = hashlib.sha256(f"fit 2 {torch.__version__} {classifier.device.type} {classifier.cfg.INPUT}".encode())
        add_tensors(digest, self.model.image_tensors())
        noise = torch.randn(4, 3, *classifier.cfg.INPUT.SIZE, generator=torch.Generator().manual_seed(0))
        exact, fast = self.run_tower(noise, False), self.run_tower(noise, True)
        has_units = usable("bf16", classifier.device) == "bf16"
        self.in_bf16 = has_units and float(torch.cosine_similarity(exact, fast).min()) > AGREEMENT
        # These features show the activation, the heads, and how this machine rounds.
        digest.update(as_bytes(fast if self.in_bf16 else exact))
        self.facts, self.width = digest.hexdigest()[:16], exact.shape[1]

    def encode(self, images: Tensor) -> Tensor:
        """(batch, 3, H, W) -> (batch, width), fp32, on the CPU; not normalised."""
        return self.run_tower(images, self.in_bf16)

    @torch.no_grad()
    def run_tower(self, images: Tensor, in_bf16: bool) -> Tensor:
        device = self.classifier.device
        with torch.autocast(device.type, torch.bfloat16, enabled=in_bf16):
            return self.model.image_output(images.to(device)).feature.float().cpu()

    def of(self, keys: Mapping[str, str]) -> tuple[dict[str, Row], dict[str, str]]:
        """The row of each image by its path, and what is wrong with others.

        Args:
            keys: the SHA-256 of each file by its path.
        """
        kept = self.kept()
        new = list({key: path for path, key in keys.items() if key not in kept}.values())  # equal files once
        damaged: dict[str, str] = {}
        with tqdm(total=len(new), desc="features", unit="image", disable=None if new else True) as bar:
            for start in range(0, len(new), PART):
                rows = {}
                for path, row in self.computed(new[start : start + PART]):
                    bar.update()
                    if isinstance(row, str):
                        damaged[path] = row
                    else:
                        rows[keys[path]] = row
                self.keep(rows)
                kept |= rows
        faults = {keys[path]: (path, fault) for path, fault in damaged.items()}
        rows = {path: kept[key] for path, key in keys.items() if key in kept}
        return rows, {path: faults[key][1].replace(faults[key][0], path) for path, key in keys.items() if key in faults}

    def computed(self, paths: Sequence[str]) -> Iterator[tuple[str, Row | str]]:
        """The rows of images, or what is wrong with them. Threads read the next images meanwhile."""
        with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
            batches = [paths[start : start + BATCH] for start in range(0, len(paths), BATCH)]
            following = list(map(pool.submit, repeat(self.read), batches[0]))
            for number, batch in enumerate(batches):
                read = [future.result() for future in following]
                following = list(map(pool.submit, repeat(self.read), *batches[number + 1 : number + 2] or [[]]))
                good = [image for image in read if not isinstance(image, str)]
                found = iter(self.encode(torch.stack([pixels for _, pixels in good])) if good else ())
                for path, image in zip(batch, read, strict=True):
                    if isinstance(image, str):
                        yield path, image
                        continue
                    feature = next(found)
                    yield path, (image[0], feature) if feature.isfinite().all() else "its feature is not finite"

    def read(self, path: str) -> tuple[str, Tensor] | str:
        """The SHA-256 of the decoded pixels and the tensor (3, H, W) of an image, or why there is none."""
        options = self.classifier.cfg.INPUT
        try:
            image = read_image(path, options.MAX_PIXELS, options.EXIF_ORIENTATION)
            digest = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
            return digest, self.classifier.transform(image)
        except (UsageError, OSError, ValueError) as error:
            return str(error)

    # On the disk: the SHA-256 of n files, the SHA-256 of their pixels, and n features

    def keep(self, rows: dict[str, Row]) -> None:
        if not rows:
            return
        files = bytes.fromhex("".join(rows))
        pixels = bytes.fromhex("".join(sha256 for sha256, _ in rows.values()))
        features = torch.stack([feature for _, feature in rows.values()])
        key = self.facts + hashlib.sha256(files).hexdigest()[:16]
        self.cache.put(key, *self.form(len(rows)), [files, pixels, as_bytes(features)])

    def kept(self) -> dict[str, Row]:
        found: dict[str, Row] = {}
        for file in sorted(self.cache.folder.glob(f"{self.cache.kind}-{self.facts}*.cache")):
            count = (file.stat().st_size - DIGEST) // self.form(1)[1]
            key = file.stem.removeprefix(f"{self.cache.kind}-")
            content = self.cache.get(key, *self.form(count)) if count else None
            if content is None:
                continue
            hashes = content[: 2 * DIGEST * count].hex()
            names = [hashes[start : start + 2 * DIGEST] for start in range(0, len(hashes), 2 * DIGEST)]
            values = np.frombuffer(content, np.float32, count * self.width, 2 * DIGEST * count)
            features = torch.from_numpy(values.reshape(count, self.width).copy())
            found |= dict(zip(names[:count], zip(names[count:], features, strict=True), strict=True))
        return found

    def form(self, count: int) -> tuple[str, int]:
        """The form and the bytes of a file of so many images."""
        return f"fp32 ({count}, {self.width})", count * (2 * DIGEST + 4 * self.width)
