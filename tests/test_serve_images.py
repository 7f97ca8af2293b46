"""Images of visitors: read as by every command, within limits."""

import numpy as np
import pytest
from dassl.utils import ImageError, read_image
from PIL import Image
from visitors import png

from inference.serving import reading

pytestmark = pytest.mark.slow


@pytest.fixture
def readers():
    readers = reading.Readers(1)
    yield readers
    readers.close()


def test_an_image_is_read_as_by_every_command(readers, photos, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (40, 60, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels[..., :3]).save(tmp_path / "turned.jpg", exif=exif)
    alpha = tmp_path / "alpha.png"
    turned = tmp_path / "turned.jpg"
    for file, orientation in (
        (photos / "d.webp", True),
        (alpha, True),
        (turned, True),
        (turned, False),
    ):
        found, expected = (read(file, None, orientation) for read in (readers.read, read_image))
        assert (found.mode, found.size, found.tobytes()) == (
            "RGB",
            expected.size,
            expected.tobytes(),
        ), file


def test_a_large_image_is_refused(readers, tmp_path, monkeypatch):
    """A TIFF of 1 MB took 12 GB; test_api.py has the limits of time and memory."""
    (tmp_path / "image").write_bytes(png(60, 60))
    monkeypatch.setattr(reading, "PIXELS", 3599)
    with pytest.raises(ImageError, match="has more than 3,599 pixels"):
        readers.read(tmp_path / "image")
