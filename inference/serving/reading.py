"""An image of a visitor, read by a process of its own: a decoder of images may take any memory and time."""

import os
import resource
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from dassl.utils.images import FORMATS, ImageError, read_image
from PIL import Image

from common.errors import UsageError

DAMAGED, TOO_LARGE = 1, 3  # exit status


class Limit(NamedTuple):
    """What an image may take; `memory` is in bytes, beyond that of an idle process."""

    pixels: int
    memory: int
    seconds: int
    nice: int


QUICK = Limit(16_000_000, 192 << 20, 2, 0)
SLOW = Limit(40_000_000, 448 << 20, 10, 10)  # of one image at a time; others go first
slow = Lock()


def read_safely(path: Any, max_pixels: int | None = None, exif_orientation: bool = True) -> Image.Image:
    """`read_image` within the limits QUICK or SLOW; UsageError if another image needs SLOW, too."""
    arguments = str(path), str(max_pixels or 0), str(int(exif_orientation))
    if image := _read_within(QUICK, *arguments):
        return image
    if not slow.acquire(blocking=False):
        raise UsageError("a large image of another visitor is read", "try again in some seconds")
    try:
        image = _read_within(SLOW, *arguments)
    finally:
        slow.release()
    if not image:
        most = f"{SLOW.pixels:,} pixels, or takes more than {SLOW.seconds} seconds"
        raise ImageError(f"the image {str(path)!r} has more than {most}: make it smaller")
    return image


def _read_within(limit: Limit, *arguments: str) -> Image.Image | None:
    """The image; None if it is too large for the limit, or takes too long."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, __file__, *map(str, limit), *arguments]
    with tempfile.TemporaryFile() as answer:
        try:
            status = subprocess.run(
                command, stdout=answer, stderr=subprocess.DEVNULL, timeout=limit.seconds, env=environment
            ).returncode
        except subprocess.TimeoutExpired:
            return None
        if status == TOO_LARGE:
            return None
        answer.seek(0)
        if status:
            text = answer.read(2000).decode(errors="replace") if status == DAMAGED else ""
            raise ImageError(text or f"the image {arguments[0]!r} is damaged, or takes too much memory: replace it")
        with Image.open(answer, formats=["PPM"]) as image:
            image.load()
            return image


def _main(limit: Limit, path: str, max_pixels: int, exif_orientation: int) -> None:
    """Write the image as a PPM file to stdout, or a line about it."""
    os.nice(limit.nice)
    with suppress(OSError, ValueError):  # a system without limits of memory, such as macOS
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + limit.memory,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (limit.seconds, limit.seconds))  # if nobody waits any more
    with suppress(Exception), Image.open(path, formats=FORMATS) as image:  # `read_image` reports what is wrong
        if image.width * image.height > limit.pixels:
            sys.exit(TOO_LARGE)
    try:
        image = read_image(path, max_pixels or None, bool(exif_orientation))
        image.save(sys.stdout.buffer, "ppm")
    except ImageError as error:
        sys.stdout.buffer.write(str(error).encode(errors="replace"))
        sys.exit(DAMAGED)


if __name__ == "__main__":
    _main(Limit(*map(int, sys.argv[1:5])), sys.argv[5], *map(int, sys.argv[6:]))
