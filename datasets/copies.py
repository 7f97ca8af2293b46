"""Near-copies: images of one scene, such as a burst, frames of a video, crops, mirrored and
re-saved files.

A signature keeps the low spatial frequencies of an image, in grey. Two signatures are compared by
phase correlation (Kuglin and Hines, 1975), limited to these frequencies: it does not change if the
picture is shifted, brighter or darker, and hardly if it is compressed, blurred or turned a little.
Perceptual hashes (ImageHash) recognise the last ones, too, but one in five frames that are shifted
by up to a tenth of the picture (docs/own_classes.md).
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ExifTags import IFD, Base

SIDE = 64  # pixels of the square picture that a signature is made of
HIGHEST = 10  # frequency: waves in the picture
SHAPE = (2 * HIGHEST + 1, HIGHEST + 1, 2)  # of a signature: rows, columns, real and imaginary part
WHITENING = 0.85  # 0: amplitudes as they are; 1: phases alone
# Pixels: the largest shift that is tried, and from one to the next
REACH = 12
STEP = 2
NEIGHBOURS = 32  # images that are compared with an image: those with the most similar features
QUERIES = 256  # images whose neighbours in other classes show how similar other scenes are
NULL_NEIGHBOURS = 16  # of each of them
NOT_COPIES = 0.97  # the share of these that must not look like copies
# Of the threshold
LEAST = 0.5
MOST = 0.8
CHANCE = 0.02  # that a class without near-copies has as many pairs above its threshold
BANDS = 0.7, 0.85  # times the threshold: where two bands of pairs begin that are not joined
# Of grey levels, below and above which the pixels of a picture are set to the level itself: a small
# spot in front of a scene, such as a finger or a caption, has the strongest edges of all
SPOTS = 0.05
NOISE = 4.0  # levels of grey that may part two copies
PLAIN = 0.8  # similarity of an image with itself after noise: copies of others are recognised
# Of images that are not in doubt: so many at least say how many images show one scene; and the
# share of scenes among images if there are fewer
LEAST_KNOWN = 10
USUAL_SHARE = 1 / 3
LARGEST = 1.5  # times the usual number of images of a scene: the largest group that is guessed
BLOCK = 4096  # pairs that are compared at a time
BURST = 3.0  # seconds between two photos, at most

Pairs = NDArray[np.int64]  # (pairs, 2): places of two images, the smaller first
Floats = NDArray[np.float32]
NO_PAIRS: Pairs = np.empty((0, 2), dtype=np.int64)


def signature(image: Image.Image) -> NDArray[np.int8]:
    """The signature of an image in RGB, of the shape SHAPE.

    The place of frequency 0 has the `structure` of the image.
    """
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=3.0)
    pixels = np.asarray(small.convert("L"), dtype=np.float32)
    waves = waves_of(pixels)
    parts = np.stack([waves.real, waves.imag], axis=-1)
    largest = max(float(np.abs(parts).max()), 1e-9)
    parts *= 127 / largest
    noise = np.random.default_rng(0).normal(size=pixels.shape)
    # The pixels of a larger image had a noise each
    noise *= NOISE * min(1.0, SIDE / float(np.sqrt(image.width * image.height)))
    noisy = waves_of((pixels + noise).clip(0, 255).round())
    found = np.round(parts).astype(np.int8)
    first, second = of_unit_length(np.stack([waves, noisy]))
    product = (first.conj() * second).real
    alike = product[:, 0].sum() + 2 * product[:, 1:].sum()
    found = np.round(parts).astype(np.int8)
    found[0, 0, 0] = round(127 * max(0.0, float(alike)))
    return found


def structure(signatures: NDArray[np.int8]) -> Floats:
    """(images, *SHAPE) -> (images,): how similar an image is to itself with noise, 0 to 1."""
    return signatures[:, 0, 0, 0].astype(np.float32) / np.float32(127)


def waves_of(pixels: NDArray[Any]) -> NDArray[np.complexfloating]:
    """(SIDE, SIDE) levels of grey -> (rows, columns), the whitened low frequencies."""
    pixels = pixels.clip(*np.quantile(pixels, [SPOTS, 1 - SPOTS]))
    window = np.hanning(SIDE + 2)[1:-1]
    waves = np.fft.fft2((pixels - pixels.mean()) * np.outer(window, window))
    rows = np.r_[0 : HIGHEST + 1, SIDE - HIGHEST : SIDE]
    waves = waves[rows, : HIGHEST + 1]
    waves = waves / np.maximum(np.abs(waves), 1e-3) ** WHITENING
    waves[0, 0] = 0
    return waves


def pixels_sha256(image: Image.Image) -> str:
    """The SHA-256 of the pixels of an image, in hexadecimal; other files may have the same ones."""
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


class Taken(NamedTuple):
    """By which camera a photo was taken, and when, as its EXIF data says."""

    camera: int = 0  # a checksum of make, model and serial number
    second: float = float("nan")  # since 1970; NaN if the image does not say it


def taken(image: Image.Image) -> Taken:
    """The camera and the time of an image, as far as its EXIF data says them."""
    with suppress(Exception):  # damaged EXIF data of a good image
        exif = image.getexif()
        details = exif.get_ifd(IFD.Exif)
        camera = [exif.get(Base.Make), exif.get(Base.Model), details.get(Base.BodySerialNumber)]
        if not any(camera):  # scans and files of other programs, whose times may all be the same
            return Taken()
        text = str(details.get(Base.DateTimeOriginal) or "")[:19]
        fraction = str(details.get(Base.SubsecTimeOriginal) or "").strip()[:6]
        moment = datetime.strptime(text, "%Y:%m:%d %H:%M:%S")
        second = (moment - datetime(1970, 1, 1)).total_seconds()
        second += float(f"0.{fraction}") if fraction.isdecimal() else 0.0
        digest = hashlib.sha256(repr(camera).encode()).digest()
        return Taken(int.from_bytes(digest[:8], "big"), second)
    return Taken()


class Look(NamedTuple):
    """Facts of an image, from its pixels and its EXIF data."""

    pixels_sha256: str
    signature: NDArray[np.int8]
    taken: Taken

    @classmethod
    def of(cls, image: Image.Image) -> "Look":
        return cls(pixels_sha256(image), signature(image), taken(image))


def bursts(photos: Sequence[Taken], labels: Sequence[Any]) -> Pairs:
    """Pairs of images of one class that one camera took within BURST seconds, one after the other.

    If such neighbours often have different classes, the camera went from one object to the next,
    and time says nothing.
    """
    by_camera = defaultdict[int, list[int]](list)
    for place, photo in enumerate(photos):
        if photo.second == photo.second:  # no NaN
            by_camera[photo.camera].append(place)
    same = []
    other = 0
    for places in by_camera.values():
        places.sort(key=lambda place: photos[place].second)
        for _, at_once in groupby(places, key=lambda place: photos[place].second):
            classes = Counter(labels[place] for place in at_once)
            other += classes.total() - max(classes.values())
        for first, second in zip(places, places[1:], strict=False):
            if photos[second].second - photos[first].second > BURST:
                continue
            if labels[first] == labels[second]:
                same.append(sorted([first, second]))
            else:
                other += 1
    if other > len(same) / 2:
        return NO_PAIRS
    return np.array(same, dtype=np.int64).reshape(-1, 2)


def colours(image: Image.Image) -> Floats:
    """(192,): the mean colours of the 8 x 8 parts of an image, the same however it is turned or
    mirrored.

    They replace features if there is no model.
    """
    parts = np.asarray(
        image.resize((8, 8), Image.Resampling.BOX, reducing_gap=3.0), dtype=np.float32
    )
    turns = [np.rot90(parts, number) for number in range(4)]
    return np.mean([*turns, *(turn[::-1] for turn in turns)], axis=0).ravel()


def unit_waves(signatures: NDArray[np.int8]) -> NDArray[np.complex64]:
    """(images, *SHAPE) -> (images, rows, columns), complex, of unit length with the half that
    symmetry leaves out.
    """
    waves = signatures[..., 0].astype(np.float32) + 1j * signatures[..., 1].astype(np.float32)
    waves[:, 0, 0] = 0  # the place of the structure
    return of_unit_length(waves)


def of_unit_length(waves: NDArray[Any]) -> NDArray[np.complex64]:
    """(images, rows, columns), of unit length with the half that symmetry leaves out."""
    power = np.abs(waves) ** 2
    length = np.sqrt(power[:, :, 0].sum(axis=1) + 2 * power[:, :, 1:].sum(axis=(1, 2)))
    return (waves / np.maximum(length, 1e-6)[:, None, None]).astype(np.complex64)


def turned(waves: NDArray[np.complex64]) -> Iterator[NDArray[np.complex64]]:
    """The waves of the same images as they are, turned by 90, 180 and 270 degrees, and mirrored."""
    upside_down = np.concatenate([waves[:, :1], waves[:, :0:-1]], axis=1)
    left_half = upside_down[:, :, :0:-1].conj()  # frequencies below 0: a picture is real
    both_halves = np.concatenate([left_half, waves], axis=2)  # columns: -HIGHEST, ..., HIGHEST
    # Of rows: 0, ..., HIGHEST, -HIGHEST, ..., -1
    order = np.r_[HIGHEST : 2 * HIGHEST + 1, 0:HIGHEST]
    transposed = both_halves.transpose(0, 2, 1)[:, order, : HIGHEST + 1]
    for each in (waves, transposed):
        mirrored = np.concatenate([each[:, :1], each[:, :0:-1]], axis=1)
        yield each
        yield each.conj()
        yield mirrored
        yield mirrored.conj()


def similarity(first: NDArray[np.complex64], second: NDArray[np.complex64]) -> Floats:
    """(pairs, rows, columns) twice, from `unit_waves` -> (pairs,): 1 for equal pictures, about 0.3
    for other ones.

    The largest phase correlation over shifts of up to REACH pixels, turns by 90 degrees and mirror
    images.
    """
    shifts = np.arange(-REACH, REACH + 1, STEP)
    rows = np.r_[0 : HIGHEST + 1, -HIGHEST:0]
    columns = np.arange(HIGHEST + 1)
    both_halves = np.where(columns > 0, 2, 1)
    of_rows = np.exp(2j * np.pi * np.outer(shifts, rows) / SIDE).astype(np.complex64)
    of_columns = np.exp(2j * np.pi * np.outer(columns, shifts) / SIDE)
    of_columns = (of_columns * both_halves[:, None]).astype(np.complex64)
    best = np.full(len(first), -1, dtype=np.float32)
    for other in turned(second):
        correlation = (of_rows @ (first.conj() * other) @ of_columns).real
        best = np.maximum(best, correlation.max(axis=(1, 2)))
    return best


def similarities(
    signatures: NDArray[np.int8], pairs: Pairs, others: NDArray[np.int8] | None = None
) -> Floats:
    """(pairs,): of the images at these places of `signatures` (images, *SHAPE) and of `others`
    (default: the same).
    """
    others = signatures if others is None else others
    found = np.empty(len(pairs), dtype=np.float32)
    for start in range(0, len(pairs), BLOCK):
        block = pairs[start : start + BLOCK]
        first = unit_waves(signatures[block[:, 0]])
        second = unit_waves(others[block[:, 1]])
        found[start : start + BLOCK] = similarity(first, second)
    return found


@dataclass(frozen=True)
class NearCopies:
    """Pairs of near-copies among images.

    Attributes:
        pairs: their places, each of one class.
        threshold: the similarity from which on two images are near-copies; found on images of
            different classes.
        plain: (images,), whether an image has too little structure for its copies to be recognised.
        alike: pairs of images of one class that are near-copies or may be some, as they are plain
            or a little less similar; the most similar ones first.
    """

    pairs: Pairs
    threshold: float
    plain: NDArray[np.bool_]
    alike: Pairs

    @classmethod
    def of(
        cls, signatures: NDArray[np.int8], features: Floats, labels: NDArray[Any]
    ) -> "NearCopies":
        """Near-copies among images. Time and memory grow with the number of images.

        Args:
            signatures: (images, *SHAPE).
            features: (images, width), of a frozen image tower. Images with similar ones are
                compared.
            labels: (images,), whole numbers. Only images of one class are joined.
        """
        plain = structure(signatures) < PLAIN
        if len(labels) < 2:
            return cls(NO_PAIRS, MOST, plain, NO_PAIRS)
        unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)
        threshold = threshold_of(signatures, unit, labels)
        joined = []
        alike = []
        for label in np.unique(labels):
            places = np.flatnonzero(labels == label)
            compared = places[pairs_of(neighbours(unit[places]))]
            scores = similarities(signatures, compared)
            joined.append(compared[scores > raised(threshold, scores)])
            possible = plain[compared].all(axis=1) | (scores > BANDS[0] * threshold)
            alike.append(by_likeness(compared[possible], scores[possible], unit))
        return cls(np.concatenate(joined), threshold, plain, np.concatenate(alike))

    def guessed(
        self, groups: NDArray[np.int64], labels: NDArray[Any], inside: NDArray[np.bool_]
    ) -> Pairs:
        """Pairs of images `inside` (images,) with which each class has as many groups, for each
        image, as the other images. One image of a pair is plain or, where most images have copies,
        has none.

        Args:
            groups: (images,), by pairs that are certain.
            labels: (images,).
        """
        size = np.bincount(groups, inside)[groups]
        recognised = inside & ~self.plain
        usual = np.median(size[recognised]) if recognised.any() else 1
        is_stray = (size <= max(1, usual / 3)) & (usual >= 2)
        uncertain = inside & (self.plain | is_stray)
        known = size[inside & ~uncertain]
        share = float(np.mean(1 / known)) if len(known) >= LEAST_KNOWN else USUAL_SHARE
        pairs = self.alike[inside[self.alike].all(axis=1) & uncertain[self.alike].any(axis=1)]
        found = [NO_PAIRS]
        for label in np.unique(labels[uncertain]):
            of_class = inside & (labels == label)
            own = pairs[of_class[pairs[:, 0]]]
            wanted = max(2, round(share * of_class.sum()))
            found.append(merged(groups, of_class, own, wanted, LARGEST / share))
        return np.concatenate(found)


def by_likeness(pairs: Pairs, scores: Floats, unit: Floats) -> Pairs:
    """The pairs, the most similar first, by their pixels (pairs,) and their features (images,
    width) alike.
    """
    if not len(pairs):
        return pairs
    cosines = (unit[pairs[:, 0]] * unit[pairs[:, 1]]).sum(axis=1)
    spreads = [max(float(values.std()), 1e-9) for values in (scores, cosines)]
    return pairs[np.argsort(-scores / spreads[0] - cosines / spreads[1], kind="stable")]


def merged(
    groups: NDArray[np.int64],
    inside: NDArray[np.bool_],
    pairs: Pairs,
    wanted: int,
    largest: float,
) -> Pairs:
    """The first of these pairs that merge the groups of images `inside` (images,) until so many are
    left, none with more than `largest` images.
    """
    numbers, size = np.unique(groups[inside], return_counts=True)
    left = len(numbers)
    sizes = dict(zip(numbers.tolist(), size.tolist(), strict=True))
    parent = {number: number for number in sizes}
    found = []
    for first, second in pairs.tolist():
        if left <= wanted:
            break
        one, other = (root(parent, int(groups[place])) for place in (first, second))
        if one == other or sizes[one] + sizes[other] > largest:
            continue
        parent[other] = one
        sizes[one] += sizes[other]
        left -= 1
        found.append((first, second))
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def root(parent: dict[int, int], number: int) -> int:
    """The number that stands for a group and those it was merged with."""
    while parent[number] != number:
        parent[number] = parent[parent[number]]
        number = parent[number]
    return number


def neighbours(unit: Floats) -> NDArray[np.int64]:
    """(images, at most NEIGHBOURS): the places of the rows (images, width) most similar to each,
    the best first.
    """
    from sklearn.neighbors import NearestNeighbors

    count = min(NEIGHBOURS, len(unit) - 1)
    if count < 1:
        return np.empty((len(unit), 0), dtype=np.int64)
    return (
        NearestNeighbors(n_neighbors=count, algorithm="brute")
        .fit(unit)
        .kneighbors(return_distance=False)
    )


def pairs_of(near: NDArray[np.int64]) -> Pairs:
    """Each pair of a row's number and a place in it, once."""
    rows = np.arange(len(near)).repeat(near.shape[1])
    return np.unique(np.sort(np.stack([rows, near.ravel()], axis=1), axis=1), axis=0)


def threshold_of(signatures: NDArray[np.int8], unit: Floats, labels: NDArray[Any]) -> float:
    """What hardly any image reaches with an image of another class, which is another scene."""
    queries = evenly(len(labels), QUERIES)
    others = evenly(len(labels), 8 * QUERIES)
    cosines = unit[queries] @ unit[others].T
    cosines[labels[queries][:, None] == labels[others]] = -np.inf
    count = min(NULL_NEIGHBOURS, len(others) - 1)
    near = np.argpartition(-cosines, count, axis=1)[:, :count]
    pairs = np.stack([queries.repeat(count), others[near].ravel()], axis=1)
    scores = similarities(signatures, pairs).reshape(len(queries), count)
    scores[~np.isfinite(np.take_along_axis(cosines, near, axis=1))] = 0
    return float(np.clip(np.quantile(scores.max(axis=1), NOT_COPIES), LEAST, MOST))


def evenly(images: int, most: int) -> NDArray[np.int64]:
    """At most `most` places among so many images."""
    return np.unique(np.linspace(0, images - 1, min(images, most)).astype(np.int64))


def raised(threshold: float, scores: Floats) -> float:
    """The threshold of a class: the usual one, or the first one above it that parts near-copies
    from other pairs.

    It does so if more pairs are above it than in the band below it, or more than the decline from
    band to band lets expect by chance. In a class whose pictures have one layout, such as rings,
    pairs become rarer slowly.
    """
    from scipy.stats import poisson

    for candidate in np.arange(threshold, 1, 0.02):
        counts = [int((scores > share * candidate).sum()) for share in (*BANDS, 1)]
        far = counts[0] - counts[1]
        near = counts[1] - counts[2]
        above = counts[2]
        decline = near / max(far, 1)
        others = near * decline / (1 - decline) if decline < 1 else np.inf
        if above >= near + far or not others or poisson.sf(above - 1, others) < CHANCE:
            return float(candidate)
    return 1.0


def components(images: int, links: Sequence[Pairs]) -> NDArray[np.int64]:
    """(images,): the number of each image's group, where linked images are in one group; from 0 by
    the first image.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = np.concatenate([NO_PAIRS, *links])
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(images, images))
    _, groups = connected_components(graph, directed=False)
    return numbered(groups)


def numbered(groups: NDArray[Any]) -> NDArray[np.int64]:
    """The same groups, numbered from 0 in the order of their first images."""
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]
