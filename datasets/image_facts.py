"""Facts of an image by which near-copies are found: its signature, the checksum of its pixels, and
when it was taken.

A signature keeps the low spatial frequencies of an image, in grey. Two signatures are compared by
phase correlation (Kuglin and Hines, 1975), limited to these frequencies: it does not change if the
picture is shifted, brighter or darker, and hardly if it is compressed, blurred or turned a little.
Perceptual hashes (ImageHash) recognise the last ones, too, but one in five frames that are shifted
by up to a tenth of the picture (docs/measurements/near_copies.md).
"""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
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
# Of grey levels, below and above which the pixels of a picture are set to the level itself: a small
# spot in front of a scene, such as a finger or a caption, has the strongest edges of all
SPOTS = 0.05
NOISE = 4.0  # levels of grey that may part two copies
BLOCK = 4096  # pairs that are compared at a time

Pairs = NDArray[np.int64]  # (pairs, 2): places of two images, the smaller first
Floats = NDArray[np.float32]


def signature(image: Image.Image) -> NDArray[np.int8]:
    """The signature of an image in RGB, of the shape SHAPE.

    The place of frequency 0 has the `structure` of the image.
    """
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=3.0)
    pixels = np.asarray(small.convert("L"), dtype=np.float32)
    waves = waves_of(pixels)
    parts = np.stack([waves.real, waves.imag], axis=-1)
    parts *= 127 / max(float(np.abs(parts).max()), 1e-9)
    noise = np.random.default_rng(0).normal(size=pixels.shape)
    # The pixels of a larger image had a noise each
    noise *= NOISE * min(1.0, SIDE / float(np.sqrt(image.width * image.height)))
    noisy = waves_of((pixels + noise).clip(0, 255).round())
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
