"""Reading image files: any content in a file with any name ends in an RGB image or in one line."""

import hashlib
import io
import os
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from threading import Lock

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from common.errors import MissingFileError, UsageError, one_line
from common.text import read_bytes

from .errors import ChangedImageError, ImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# From byte 4 on
HEIC = (
    b"ftypheic",
    b"ftypheix",
    b"ftypheim",
    b"ftypheis",
    b"ftyphevc",
    b"ftypmif1",
    b"ftypmsf1",
)
MAX_BYTES = 32_000_000  # of a file; Pillow reads some headers byte by byte, about 2.5 MB a second
# Of the sides: a test resizes the shorter side to INPUT.SIZE, which makes a thin image a huge one
MAX_RATIO = 100
MAX_SCANS = 64  # of a JPEG; each scan reads all pixels. Cameras and optimisers write up to about 15
RGB_SOURCES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "La", "CMYK", "YCbCr"}
opening = Lock()
Image.preinit()  # imports the usual formats once, not in every worker of a data loader


class Content(bytes):
    """The content of an image file, with the name that errors give it."""

    name = "in memory"


def read_image(path, max_pixels=None, exif_orientation=True, sha256=None):
    """Read an image file. Its content decides what it is, not its name; of an animation, the first
    frame is read.

    Greyscale with 16 bits is reduced to its upper 8 bits, as Pillow does for colours. Everything
    else is Pillow's conversion to RGB, which ignores transparency.

    Args:
        path (str): a regular file in one of FORMATS, or in HEIC if pillow-heif is installed; or its
            content as bytes; or an image of Pillow, which is converted in the same way.
        max_pixels (int): limit on width times height; by default Pillow's, 89,478,485. The longer
            side may have at most MAX_RATIO times the pixels of the shorter one, and a file
            MAX_BYTES bytes.
        exif_orientation (bool): turn the image as its EXIF data says. The published Dassl does not.
        sha256 (bytes): of the file, if it is known.

    Raises ImageError (a UsageError and an OSError), which names the file, if it is missing,
    truncated, too large, too thin, or not such an image; or ChangedImageError: another SHA-256.
    """
    # In one line and printable
    in_memory = isinstance(path, bytes | Image.Image)
    name = getattr(path, "name", "in memory") if in_memory else repr(os.fspath(path))
    limit = max_pixels or Image.MAX_IMAGE_PIXELS or float("inf")
    try:
        with _opened(path, name, sha256) as image:
            _check_size(image, name, limit)  # before its pixels are decoded
            return _convert(image, exif_orientation)
    except ImageError:
        raise
    except MissingFileError:
        remedy = "check DATASET.ROOT and that the dataset is complete"
        raise ImageError(f"there is no image at {name}: {remedy}") from None
    except UnidentifiedImageError:
        fault = f"{name} is damaged or not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image"
        raise ImageError(f"{fault}: convert, replace or remove it") from None
    except Exception as error:  # Pillow's decoders raise many kinds for damaged data
        is_ours = isinstance(error, UsageError)
        reason = error.fault.replace(str(path), "it") if is_ours else one_line(error)
        fault = f"cannot read the image {name} ({reason})"
        raise ImageError(f"{fault}: replace or remove it") from error


def _opened(path, name, sha256):
    """An image whose header is read, or a copy of an image of Pillow."""
    if isinstance(path, Image.Image):
        image = path.copy()
        image.format = path.format  # which a copy lacks
        return image
    content = path if isinstance(path, bytes) else read_bytes(path, MAX_BYTES)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
    # Of the bytes that are decoded
    if sha256 is not None and hashlib.sha256(content).digest() != sha256:
        fault = f"the image {name} changed after its checksum was read"
        raise ChangedImageError(f"{fault}: run the command again")
    formats = _formats_with_heif() if content[4:12] in HEIC else FORMATS
    with opening:  # Pillow has one limit for the whole process, which does not apply here
        usual = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            image = Image.open(io.BytesIO(content), formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = usual
    scans = content.count(b"\xff\xda") if image.format in ("JPEG", "MPO") else 0
    if scans > MAX_SCANS:
        raise ValueError(f"it has {scans:,} scans, at most {MAX_SCANS} are expected")
    return image


def decoders():
    """The versions of the packages that decode and transform images; None for one that is not
    installed.
    """
    found = {}
    for package in ("pillow", "pillow-heif", "torchvision"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _formats_with_heif():
    """FORMATS, and that of pillow-heif; ValueError if this is not installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise ValueError("it is in HEIC, which `pip install pillow-heif` reads") from None
    register_heif_opener()
    return (*FORMATS, "HEIF")


def _check_size(image, name, limit):
    width, height = image.size
    if width * height > limit:
        fault = f"the image {name} has more than {limit:,} pixels"
        options = "INPUT.MAX_PIXELS (tools/predict.py: --max-pixels; in Python: max_pixels)"
        raise ImageError(f"{fault}: make it smaller or remove it, or raise {options}")
    if max(width, height) > MAX_RATIO * min(width, height):
        fault = f"the image {name} has {width:,} x {height:,} pixels, a ratio of over {MAX_RATIO}"
        raise ImageError(f"{fault}: crop or remove it")


def _convert(image, exif_orientation):
    """The image in RGB; `image` may change."""
    # How the pixels of a file are packed; empty after loading
    layout = str(getattr(image, "tile", ""))
    image.load()
    if exif_orientation:
        with suppress(Exception):  # damaged EXIF data of a good image
            ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        pixels = np.asarray(image) >> (4 if "I;12" in layout else 8)
        image = Image.fromarray(pixels.astype(np.uint8))
    elif image.mode not in RGB_SOURCES:
        raise ValueError(f"its pixels have the mode {image.mode}; convert it to 8 bits per channel")
    image.info.pop("transparency", None)  # it has no effect but a warning
    return image.convert("RGB")
