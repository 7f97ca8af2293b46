"""Image files: what they are is read from their content, and everything else ends in one line that
names the file.
"""

import os
import struct
import sys
import zlib

import numpy as np
import pytest
from dassl.data import DataManager
from dassl.utils import ImageError, images, read_image
from PIL import Image
from tiny_project import make_cfg, make_images

NOISE = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)


def refused(path, *words, **options):
    with pytest.raises(ImageError) as caught:
        read_image(path, **options)
    message = str(caught.value)
    assert repr(str(path)) in message and "\n" not in message
    assert [word for word in words if word not in message] == [], message


def written(path, pixels, kind="PNG", orientation=None, **options):
    """The path of an image file with these pixels, or of this image of Pillow."""
    if orientation:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, kind, **options)
    return path


def pixels_of(image):
    return np.asarray(image.convert("RGB"))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_pixels_are_those_of_pillow(mode, tmp_path):
    image = Image.fromarray(NOISE).convert(mode)
    options = {"transparency": b"\0\1\2"} if mode == "P" else {}
    path = written(tmp_path / "a.png", image, "TIFF" if mode == "CMYK" else "PNG", **options)
    assert np.array_equal(read_image(path), pixels_of(image))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("pixels", [NOISE, RAMP], ids=["8 bits", "16 bits"])
def test_image_in_memory_is_read_like_its_file(pixels, orientation, tmp_path):
    path = written(tmp_path / "a.png", pixels, orientation=orientation)
    image = Image.open(path)
    before = image.copy()
    assert np.array_equal(read_image(image), read_image(path))
    assert np.array_equal(read_image(path.read_bytes()), read_image(path))
    assert np.array_equal(image, before) and image.mode == before.mode  # it has not changed
    with pytest.raises(ImageError, match="in memory has more than 9 pixels"):
        read_image(image, 9)
    with pytest.raises(ImageError, match="the mode F"):
        read_image(image.convert("F"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "MPO"])
def test_the_content_decides_the_kind(kind, tmp_path):
    path = written(tmp_path / "name.jpg", NOISE, kind)
    assert np.array_equal(read_image(path), pixels_of(Image.open(path)))


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})]
)
def test_16_bit_greyscale_keeps_its_upper_8_bits(kind, options, tmp_path):
    path = written(tmp_path / "a.png", RAMP, kind, **options)
    assert np.array_equal(read_image(path), np.repeat((RAMP >> 8)[..., None], 3, axis=2))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation_of_exif_data(kind, tmp_path):
    path = written(tmp_path / "a.jpg", NOISE, kind, orientation=6)  # turn by 90 degrees
    stored = pixels_of(Image.open(path))
    assert np.array_equal(read_image(path), np.rot90(stored, -1))
    assert np.array_equal(read_image(path, exif_orientation=False), stored)


HEADER = b"\x00\x00\x00\x1cftypheic\x00\x00\x00\x00mif1heic"


def test_heic_without_its_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match="it is in HEIC, which `pip install pillow-heif` reads"):
        read_image(HEADER + bytes(100))


def test_settings_of_a_run_reach_the_reader(tmp_path):
    make_images(tmp_path)
    options = ["INPUT.MAX_PIXELS", 16 * 16, "INPUT.EXIF_ORIENTATION", False]
    loader = DataManager(
        make_cfg(tmp_path, tmp_path, *options), custom_tfm_train=np.asarray
    ).train_loader_x
    for item in loader.dataset.data_source:
        written(item.impath, NOISE[:16, :8], orientation=6)
    assert {tuple(batch["img"].shape) for batch in loader} == {(4, 16, 8, 3)}
    large = loader.dataset.data_source[0].impath
    Image.new("RGB", (16, 17)).save(large)
    with pytest.raises(
        ImageError, match=f"{large}' has more than 256 pixels: .* or raise INPUT.MAX_PIXELS"
    ):
        list(loader)


def png(width, height, bits=8, data=b""):
    """A PNG file in RGB; `data` are its rows, each after a byte 0."""
    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, part in ((b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")):
        content += (
            struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))
        )
    return content


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [(9460, 9460), (2**31 - 1, 2**31 - 1)])
def test_decompression_bomb_is_an_error(size, tmp_path):
    (tmp_path / "a.png").write_bytes(png(*size))
    refused(tmp_path / "a.png", "has more than 89,478,485 pixels: make it smaller or remove it")


@pytest.mark.parametrize("size", [(200_000, 1), (1, 200_000), (4, 401)])
def test_thin_image_is_refused_as_it_would_be_huge_after_resizing(size, tmp_path):
    """A file of 661 bytes took 3.7 GB in a test: 200,000 x 1 pixels are 44,800,000 x 224 after
    resizing.
    """
    width, height = size
    (tmp_path / "a.png").write_bytes(png(width, height, data=(b"\0" + bytes(3 * width)) * height))
    refused(
        tmp_path / "a.png",
        f"has {width:,} x {height:,} pixels, a ratio of over 100: crop or remove it",
    )
    assert read_image(Image.new("RGB", (100, 1))).size == (100, 1)


def test_jpeg_of_endless_scans_is_refused(tmp_path):
    """14 kB of repeated scans made an image of 9,000 x 9,000 pixels take 20 seconds instead of
    2.
    """
    path = written(tmp_path / "a.jpg", NOISE, "JPEG", progressive=True)
    content = path.read_bytes()
    scan = content[content.rindex(b"\xff\xc4") : -2]  # the last one, with its table
    path.write_bytes(content[:-2] + 50 * scan + content[-2:])
    assert read_image(path).size == (30, 40)
    path.write_bytes(content[:-2] + 100 * scan + content[-2:])
    refused(path, "it has 110 scans, at most 64 are expected")


def test_a_file_has_a_largest_size_and_pillows_limit_stays(tmp_path, monkeypatch):
    """A header of 40 MB kept Pillow busy for 17 seconds; its limit was raised for each later image
    of the process.
    """
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = written(tmp_path / "a.ppm", NOISE, "PPM")
    refused(path, "has more than 100 pixels")
    assert read_image(path, max_pixels=1200).size == (30, 40) and Image.MAX_IMAGE_PIXELS == 100
    with open(path, "ab") as file:
        file.truncate(images.MAX_BYTES + 1)
    refused(path, "it is larger than 32,000,000 bytes", max_pixels=1200)


def test_named_pipe_device_and_folder_are_refused_without_waiting_and_escaped(tmp_path):
    os.mkfifo(tmp_path / "a\n\x1b.png")
    for path in (tmp_path / "a\n\x1b.png", "/dev/zero"):
        refused(path, "is not a regular file")
    refused(tmp_path, "is not a regular file")
