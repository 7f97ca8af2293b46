"""Small pictures of images, for people."""

import io

from dassl.utils.images import read_image

QUALITY = 85


def jpeg_of(path: str, side: int, max_pixels: int | None = None) -> bytes:
    """An image as a JPEG whose longer side has at most `side` pixels.

    Raises:
        UsageError: it cannot be read.
    """
    image = read_image(path, max_pixels)
    image.thumbnail((side, side))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=QUALITY)
    return content.getvalue()
