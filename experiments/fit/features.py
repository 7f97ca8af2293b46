"""The feature of each image, computed once: more images in a later call, or a killed call, cost only what is new."""

import hashlib
import os
from collections.abc import Mapping
from importlib.metadata import version
from itertools import islice
from multiprocessing.pool import ThreadPool

import torch
from dassl.utils import ChangedImageError, read_image
from torch import Tensor
from tqdm import tqdm

from clip.digest import add_tensors, as_bytes
from common.cache import DIGEST, DiskCache
from inference.classifier import PromptedClassifier
from trainers.base.build import usable
from trainers.base.features import get_tensor, put_tensor
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

    def __init__(self, classifier: PromptedClassifier, model: PromptedCLIP):
        self.classifier, self.model = classifier, model
        self.cache = DiskCache(cache_folder(), "features", "image features", LIMIT)
        versions = [torch.__version__, version("pillow"), version("torchvision")]
        digest = hashlib.sha256(f"fit 4 {versions} {classifier.device.type} {classifier.cfg.INPUT}".encode())
        add_tensors(digest, self.model.image_tensors())
        noise = torch.randn(4, 3, *classifier.cfg.INPUT.SIZE, generator=torch.Generator().manual_seed(0))
        exact, fast = self.run_tower(noise, False), self.run_tower(noise, True)
        has_units = usable("bf16", classifier.device) == "bf16"
        self.in_bf16 = has_units and float(torch.cosine_similarity(exact, fast).min()) > AGREEMENT
        # These features show the activation, the heads, and how this machine rounds.
        digest.update(as_bytes(fast if self.in_bf16 else exact))
        self.facts, self.width = digest.hexdigest()[:16], exact.shape[1]
        self.changed = False  # whether an image had another checksum when it was decoded

    def encode(self, images: Tensor) -> Tensor:
        """(batch, 3, H, W) -> (batch, width), fp32, on the CPU; not normalised."""
        return self.run_tower(images, self.in_bf16)

    @torch.no_grad()
    def run_tower(self, images: Tensor, in_bf16: bool) -> Tensor:
        device = self.classifier.device
        with torch.autocast(device.type, torch.bfloat16, enabled=in_bf16):
            return self.model.image_output(images.to(device)).feature.float().cpu()

    def of(self, keys: Mapping[str, str]) -> tuple[dict[str, Row], dict[str, str]]:
        """The row of each image by its path, and the fault of each other image. Threads read the next images meanwhile.

        An image whose file has another checksum by now has the fault that it changed.

        Args:
            keys: the SHA-256 of each file by its path; empty for a link to nothing.
        """
        kept, damaged = self.kept(), dict[str, str]()
        new = [path for path, key in keys.items() if key not in kept]
        bar = tqdm(total=len(new), desc="features", unit="image", disable=None if new else True)
        with bar, ThreadPool(torch.get_num_threads()) as pool:
            for start in range(0, len(new), PART):
                rows: dict[str, Row] = {}
                images = pool.imap(lambda path: self.read(path, keys[path]), new[start : start + PART])
                while batch := list(islice(images, BATCH)):
                    damaged |= {path: fault for path, fault, pixels in batch if pixels is None}
                    good = [(path, sha256, pixels) for path, sha256, pixels in batch if pixels is not None]
                    features = self.encode(torch.stack([pixels for *_, pixels in good])) if good else ()
                    for (path, sha256, _), feature in zip(good, features, strict=True):
                        if feature.isfinite().all():
                            rows[keys[path]] = sha256, feature
                        else:
                            damaged[path] = f"the feature of {path} is not finite"
                    bar.update(len(batch))
                self.keep(rows)
                kept |= rows
        return {path: kept[key] for path, key in keys.items() if key in kept}, damaged

    def read(self, path: str, key: str) -> tuple[str, str, Tensor | None]:
        """An image: its path, the SHA-256 of its pixels, the tensor (3, H, W); or its path, its fault, None.

        `key` is the SHA-256 that its file must have.
        """
        options = self.classifier.cfg.INPUT
        try:
            image = read_image(path, options.MAX_PIXELS, options.EXIF_ORIENTATION, bytes.fromhex(key))
            sha256 = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
            return path, sha256, self.classifier.transform(image)
        except ChangedImageError:
            self.changed = True
            return path, f"{path} changed while fit ran", None
        except (OSError, ValueError) as error:
            return path, str(error) if os.path.exists(path) else f"{path} is a link to a file that is gone", None

    # On the disk: a table with a row of bytes for each image: the SHA-256 of its file, that of its pixels, its feature

    def keep(self, rows: Mapping[str, Row]) -> None:
        if not rows:
            return
        content = [bytes.fromhex(key + sha256) + as_bytes(feature).tobytes() for key, (sha256, feature) in rows.items()]
        table = torch.frombuffer(bytearray(b"".join(content)), dtype=torch.uint8).reshape(len(rows), -1)
        put_tensor(self.cache, self.facts + hashlib.sha256("".join(rows).encode()).hexdigest()[:16], table)

    def kept(self) -> dict[str, Row]:
        found: dict[str, Row] = {}
        length = 2 * DIGEST + 4 * self.width
        for file in sorted(self.cache.folder.glob(f"{self.cache.kind}-{self.facts}*.cache")):
            count = (file.stat().st_size - DIGEST) // length
            key = file.stem.removeprefix(f"{self.cache.kind}-")
            table = get_tensor(self.cache, key, (count, length), torch.uint8) if count else None
            for row in () if table is None else table:
                hashes = row[: 2 * DIGEST].numpy().tobytes().hex()
                found[hashes[: 2 * DIGEST]] = hashes[2 * DIGEST :], row[2 * DIGEST :].view(torch.float32)
        return found
