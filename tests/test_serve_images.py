"""Images of visitors: read as by every command, within limits."""

import numpy as np
import pytest
from dassl.utils import ImageError, read_image
from PIL import Image
from visitors import comments, png

gradio = pytest.importorskip("gradio", reason="gradio is not installed (requirements-serve.txt)")
from inference.serving import reading  # noqa: E402

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


@pytest.mark.parametrize(
    ("image", "limit", "value", "reason"),
    [
        ("large", "PIXELS", 3599, "has more than 3,599 pixels"),
        ("slow", "SECONDS", 1, "takes more than 1 seconds: make it smaller"),
        ("deep", "MEMORY", 20 << 20, "damaged, or takes too much memory|cannot read"),
    ],
)
def test_an_image_has_limits(image, limit, value, reason, readers, tmp_path, monkeypatch):
    """A TIFF of 1 MB took 12 GB, and a GIF of 8 MB held up all visitors for 107 seconds."""
    contents = {"large": png(60, 60), "slow": comments(3_000_000), "deep": png(4000, 4000)}
    (tmp_path / "image").write_bytes(contents[image])
    monkeypatch.setattr(reading, limit, value)
    with pytest.raises(ImageError, match=reason):
        readers.read(tmp_path / "image")
