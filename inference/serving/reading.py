"""An image of a visitor, read by a process of its own: a decoder of images may take any memory and time."""

import os
import resource
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from dassl.utils.images import ImageError, read_image
from PIL import Image

PIXELS = 25_000_000
MEMORY = 256 << 20  # bytes, beyond those of an idle process
SECONDS = 5  # of the processor
PATIENCE = 30  # seconds: a busy machine is slow
DAMAGED = 1  # exit status


def read_safely(path: Any, max_pixels: int | None = None, exif_orientation: bool = True) -> Image.Image:
    """`read_image` within PIXELS, MEMORY and SECONDS."""
    limits = min(max_pixels or PIXELS, PIXELS), MEMORY, SECONDS
    command = [sys.executable, __file__, str(path), *map(str, (*limits, int(exif_orientation)))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as answer:
        try:
            status = subprocess.run(
                command, stdout=answer, stderr=subprocess.DEVNULL, timeout=PATIENCE, env=environment
            ).returncode
        except subprocess.TimeoutExpired:
            status = -signal.SIGXCPU
        if status == -signal.SIGXCPU:
            raise ImageError(f"the image {str(path)!r} takes more than {SECONDS} seconds: make it smaller")
        answer.seek(0)
        if status:
            text = answer.read(2000).decode(errors="replace") if status == DAMAGED else ""
            raise ImageError(text or f"the image {str(path)!r} is damaged, or takes too much memory: replace it")
        with Image.open(answer, formats=["PPM"]) as image:
            image.load()
            return image


def _main(path: str, pixels: int, memory: int, seconds: int, exif_orientation: int) -> None:
    """Write the image as a PPM file to stdout, or a line about it."""
    os.nice(19)  # answers to visitors go first
    with suppress(OSError, ValueError):  # a system without limits of memory, such as macOS
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    try:
        read_image(path, pixels, bool(exif_orientation)).save(sys.stdout.buffer, "ppm")
    except ImageError as error:
        sys.stdout.buffer.write(str(error).encode(errors="replace"))
        sys.exit(DAMAGED)


if __name__ == "__main__":
    _main(sys.argv[1], *map(int, sys.argv[2:]))
