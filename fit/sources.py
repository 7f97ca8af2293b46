"""The backbones of a fit: the features of the images by each of them, and its price."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from clip import CLIP, load_backbone, reads_texts, weight_file, weights_sha256
from common.errors import UsageError
from datasets import sentences as sentence_files
from inference.classifier import PromptedClassifier
from inference.description import zero_shot_description
from inference.options import LoadOptions
from trainers.base import TEMPLATE

from . import banked
from .candidates import VISION
from .features import Features, Row
from .heads import Heads, reads_names
from .images import learned_classes
from .options import FitRequest
from .rows import Photo

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
    rows: Mapping[str, Row]
    damaged: Mapping[str, str]
    encoder: Features

    def of_classes(self, names: Sequence[str]) -> Heads:
        """The heads for these classes."""
        if self.heads.names == names:
            return self.heads
        return heads_of(self.request, names, self.heads.clip)


def heads_of(request: FitRequest, names: Sequence[str], clip: CLIP | None = None) -> Heads:
    """The heads on zero-shot CLIP for these classes; the backbone may be loaded already."""
    sentences = sentence_files.read(request.sentences, names)
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
        sources.append(Source(own, heads, *banked.features_of(found, encoder), encoder))
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


def read_by_all(sources: Sequence[Source]) -> tuple[dict[str, Row], dict[str, str]]:
    """The rows of the first backbone, of images that all can use; and the faults of others."""
    rows = sources[0].rows
    used = {path: rows[path] for path in rows if all(path in one.rows for one in sources)}
    return used, {path: fault for one in sources for path, fault in one.damaged.items()}
