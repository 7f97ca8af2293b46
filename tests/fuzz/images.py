"""Cases of images."""

import io
import struct
import zlib
from functools import cache
from random import Random

import numpy as np
from PIL import Image

from .cases import SPECIAL, Case, kind
from .changes import change_bytes
from .corpus import SPLIT, dataset, train


@cache
def pictures() -> dict[str, bytes]:
    """Small images in many formats and modes."""
    pixels = Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    deep = Image.fromarray(np.random.default_rng(1).integers(0, 65536, (32, 32)).astype(np.uint16))
    turned = Image.Exif()
    turned[0x0112] = 6
    forms = [(mode, "PNG", {}) for mode in ("RGB", "RGBA", "L", "LA", "P", "1")]
    plain = ("BMP", "GIF", "PPM", "TGA", "WEBP", "ICO", "PCX", "DDS", "SGI", "JPEG2000")
    forms += [("RGB", name, {}) for name in plain]
    forms += [(mode, "JPEG", {"exif": turned}) for mode in ("RGB", "L", "CMYK")]
    forms += [("RGB", "TIFF", {"compression": how}) for how in ("raw", "tiff_lzw", "jpeg")]
    forms += [("RGB", name, {"save_all": True, "append_images": [pixels] * 3}) for name in ("PNG", "GIF", "WEBP")]
    made = {}
    for number, (mode, name, options) in enumerate(forms):
        made[f"{number} {name}"] = encoded(pixels.convert(mode), name, **options)
    return made | {"16 bits": encoded(deep, "PNG"), "16 bits TIFF": encoded(deep, "TIFF")}


def encoded(image: Image.Image, name: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def crafted_png(rng: Random) -> bytes:
    """A PNG with valid checksums and an unusual header, such as one of far too many pixels."""
    width, height = (rng.choice((0, 1, 31, 32, 9999, 65535, 2**31 - 1, 2**32 - 1)) for _ in range(2))
    header = struct.pack(">IIBBBBB", width, height, rng.choice((0, 1, 3, 8, 16)), rng.choice((0, 2, 3, 6, 7)), 0, 0, 0)
    text = rng.choice((b"a\0" + b"x" * 99, b"", b"a\0\0" + zlib.compress(bytes(2 * 10**7), 1)))
    extra = rng.choice((b"", *(chunk(kind, text) for kind in (b"zTXt", b"iCCP", b"eXIf")), chunk(b"acTL", b"\xff" * 8)))
    data = zlib.compress(bytes(rng.choice((0, 9, 3104, 10**6))))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def thin_png(rng: Random) -> bytes:
    """A valid PNG, small as a file, that resizing its shorter side to INPUT.SIZE makes hundreds of times as large."""
    sides = [rng.choice((1, 2, 3)), rng.choice((99, 101, 1000, 200_000, 5_000_000))]
    rng.shuffle(sides)
    return encoded(Image.new("L", tuple(sides)), "PNG")


def changed_picture(rng: Random) -> bytes:
    """Usually a picture with changed bytes or an unusual PNG."""
    picture, how = rng.choice(list(pictures().values())), rng.random()
    if how < 0.7:
        return change_bytes(rng, picture) if how < 0.6 else picture
    return rng.choice((crafted_png, thin_png))(rng)


@kind("image", share=10)
def image(rng: Random) -> Case:
    """One or two changed images among those of a dataset: tested on, trained on, or checked."""
    files = dataset()
    for name in rng.sample([name for name in files if name != SPLIT], 2):
        files[name] = rng.choice(SPECIAL) if rng.random() < 0.1 else changed_picture(rng)
    case = Case("train", [], files)
    use = rng.randrange(4)
    if use < 2:
        case.argv = train("ZeroshotCLIP", "DATASET.NUM_SHOTS", -1, root="data")
    elif use == 2:
        cached = ("DATALOADER.CACHE", rng.choice((True, False)))
        case.argv = train("CoOp", "OPTIM.MAX_EPOCH", 1, "DATASET.NUM_SHOTS", 2, *cached, root="data")
    else:
        case.program, case.argv = "prepare", ["--check", "eurosat", "--root", "data"]
    return case
