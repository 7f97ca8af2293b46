"""Cases of data: images, archives of datasets, and the answers of the server that they come from."""

import io
import struct
import zlib
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
from archives import tar, zipped
from PIL import Image

from .cases import SPECIAL, Case, kind
from .changes import NAMES, change_bytes
from .corpus import BASE, PACKED, train
from .pickles import change_zip

# Images


@cache
def pictures() -> dict[str, bytes]:
    """Small images in many formats and modes."""
    pixels = Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    deep = Image.fromarray(np.random.default_rng(1).integers(0, 65536, (32, 32)).astype(np.uint16))
    turned = Image.Exif()
    turned[0x0112] = 6
    forms = [(mode, "PNG", {}) for mode in ("RGB", "RGBA", "L", "LA", "P", "1")]
    forms += [
        ("RGB", name, {}) for name in ("BMP", "GIF", "PPM", "TGA", "WEBP", "ICO", "PCX", "DDS", "SGI", "JPEG2000")
    ]
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
    extra = rng.choice(
        (b"", chunk(b"zTXt", text), chunk(b"iCCP", text), chunk(b"eXIf", text), chunk(b"acTL", b"\xff" * 8))
    )
    data = zlib.compress(bytes(rng.choice((0, 9, 3104, 10**6))))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@kind("image", share=10)
def image(rng: Random) -> Case:
    """One or two changed images among those of a dataset: tested on, trained on, or checked."""
    data = Path(BASE, "data/eurosat")
    files: dict[str, bytes | str] = {str(path.relative_to(data)): path.read_bytes() for path in data.rglob("*.png")}
    for name in rng.sample(sorted(files), 2):
        picture, how = rng.choice(list(pictures().values())), rng.random()
        content = change_bytes(rng, picture) if how < 0.6 else picture if how < 0.7 else crafted_png(rng)
        files[name] = rng.choice(SPECIAL) if rng.random() < 0.1 else content
    files["split_zhou_EuroSAT.json"] = (data / "split_zhou_EuroSAT.json").read_bytes()
    case = Case("train", [], {f"data/eurosat/{name}": content for name, content in files.items()})
    use = rng.randrange(4)
    if use < 2:
        case.argv = train("ZeroshotCLIP", "DATASET.NUM_SHOTS", -1, root="data")
    elif use == 2:
        cached = ("DATALOADER.CACHE", rng.choice((True, False)))
        case.argv = train("CoOp", "OPTIM.MAX_EPOCH", 1, "DATASET.NUM_SHOTS", 2, *cached, root="data")
    else:
        case.program, case.argv = "prepare", ["--check", "eurosat", "--root", "data"]
    return case


# Archives of datasets


@cache
def archives(name: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(BASE, "packed", name).iterdir()}


def crafted_archive(rng: Random) -> bytes:
    """A tar or zip archive of hostile names, links, devices, or far too much."""
    names = [name for name in NAMES if name and "\0" not in name and name != "\udcff" and len(name) < 999] + [
        "2750/a.jpg",
        "dtd/images/x/y.jpg",
    ]
    members: dict = {rng.choice(names): rng.choice((b"", b"x" * 99, bytes(10**7))) for _ in range(3)}
    if rng.random() < 0.5:
        kinds = {name: rng.choice((0, 0o120777, 0o20644, 0o100644)) for name in members}
        return zipped(Path("archive"), members, kinds).read_bytes()
    for name in list(members)[:1]:
        members[name] = (rng.choice((b"1", b"2", b"3", b"6", b"x", b"L", b"S")), rng.choice(names))
    return tar(Path("archive"), members, rng.choice(("w:gz", "w"))).read_bytes()


def preparation(name: str, files: dict[str, bytes], source: list[str]) -> Case:
    """tools/prepare.py with these files on the server or in a folder."""
    case = Case("prepare", [name, "--root", "data", *source])
    if source[0] == "--from":
        case.files = {f"given/{file}": content for file, content in files.items()}
    else:
        case.served = {f"/{name}/{file}": content for file, content in files.items()}
    return case


@kind("data archive", share=7)
def data_archive(rng: Random) -> Case:
    name = rng.choice(PACKED)
    files = dict(archives(name))
    changed = rng.choice(sorted(files))
    before, how = files[changed], rng.random()
    if how < 0.3 and changed.endswith(".zip"):
        files[changed] = change_zip(rng, before)
    elif how < 0.75:
        files[changed] = change_bytes(rng, before)
    else:
        files[changed] = crafted_archive(rng) if how < 0.9 else files[rng.choice(sorted(files))]
    return preparation(name, files, rng.choice((["--from", "given"], ["--mirror", "{server}"])))


# Answers

STATUS = (
    "200 OK",
    "206 Partial Content",
    "416 Range Not Satisfiable",
    "302 Found",
    "301 x",
    "100 Continue",
    "404 Not Found",
)
STATUS += (
    "429 Too Many",
    "503 Busy",
    "204 No Content",
    "999 x",
    "0 x",
    "-1 x",
    "200",
    "\xb2 OK",
    "9" * 5000,
    "",
    "101 Switching",
)
HEADERS = {
    "Content-Length": (
        "0",
        "1",
        "-1",
        "5",
        "{size}",
        "{size}, {size}",
        "\xb2",
        "9" * 5000,
        "1e3",
        "0x10",
        " ",
        "+3",
        "99999999999999",
    ),
    "Content-Range": (
        "bytes 0-9/{size}",
        "bytes 5-1/2",
        "bytes \xb2-3/\xb2",
        "bytes */{size}",
        "bytes 0-" + "9" * 5000,
        "x",
        "/",
    ),
    "Content-Type": (
        "text/html",
        "application/octet-stream",
        "\xff",
        "text/html; charset=\0",
        "multipart/byteranges; boundary=a",
    ),
    "Content-Encoding": ("gzip", "br", "deflate, gzip", "identity", "x"),
    "Transfer-Encoding": ("chunked", "gzip, chunked", "x", "chunked, chunked"),
    "Location": (
        "{server}/eurosat/EuroSAT.zip",
        "http://[::1/",
        "http://[",
        "file:///etc/passwd",
        "//",
        "",
        "\xff",
        "x" * 9000,
        "gopher://a/",
    ),
    "Retry-After": ("0", "99999999", "-1", "x", "Fri, 31 Dec 9999 23:59:59 GMT"),
    "Set-Cookie": ("a=b", "=" * 5000, "a=b; expires=x"),
    "Connection": ("close", "keep-alive", "x"),
}


def answer(rng: Random, content: bytes) -> bytes | str:
    """A whole answer with nonsense in its status, headers or body; or a fault that tests/serving.py knows."""
    faults = (
        "not found",
        "busy",
        "quota page",
        "no ranges",
        "short range",
        "cut off in a chunk",
        "too long",
        "cut off",
    )
    if rng.random() < 0.25:
        return rng.choice(faults)
    status = rng.choice(STATUS) if rng.random() < 0.6 else "200 OK"
    lines = [f"HTTP/1.{rng.choice('1111109')} {status}"]
    for name in rng.sample(sorted(HEADERS), rng.choice((1, 2, 3))):
        lines.append(f"{name}: {rng.choice(HEADERS[name])}".replace("{size}", str(len(content))))
    if rng.random() < 0.1:
        lines.append(
            rng.choice(("no colon", ": x", "\tfolded", "X" * 70000, "A: " + "x" * 70000, "a: \0", *["b: c"] * 2))
        )
    body = rng.choice(
        (content, content[: len(content) // 2], content + b"x", b"", b"5\r\nabcde\r\n0\r\n\r\n", b"ffffffffff\r\n")
    )
    whole = "\r\n".join(lines).encode("latin-1", errors="replace") + b"\r\n\r\n" + body
    return change_bytes(rng, whole) if rng.random() < 0.2 else whole


@kind("server answer", share=7)
def answers(rng: Random) -> Case:
    name = rng.choice(("eurosat", "imagenet_r"))
    files = archives(name)
    case = preparation(name, files, ["--mirror", "{server}"])
    case.answers = [answer(rng, rng.choice(list(files.values()))) for _ in range(rng.choice((1, 2, 8, 40)))]
    if rng.random() < 0.5:
        case.answers.insert(0, "")
    if rng.random() < 0.2:  # a download that was cut off before
        largest = max(files, key=lambda file: len(files[file]))
        start = files[largest][: rng.randrange(len(files[largest]))]
        folder = {"eurosat": "eurosat", "imagenet_r": "imagenet-rendition"}[name]
        case.files[f"data/{folder}/.preparing/{largest}.partial"] = start
    return case
