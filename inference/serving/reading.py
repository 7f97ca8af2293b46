"""An image of a visitor, read by a process of its own: a decoder of images may take any memory and time."""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from math import ceil
from pathlib import Path
from threading import Timer
from typing import Any

from dassl.utils.images import ImageError, read_image
from PIL import Image

PIXELS = 25_000_000
MEMORY = 256 << 20  # bytes, beyond those of an idle process
SECONDS = 5  # of the processor
PATIENCE, WITH_START = 30, 120  # seconds: a busy machine is slow, above all when it starts a process
DAMAGED = 1  # exit status


def read_safely(path: Any, max_pixels: int | None = None, exif_orientation: bool = True) -> Image.Image:
    """`read_image` within PIXELS, MEMORY and SECONDS."""
    limits = min(max_pixels or PIXELS, PIXELS), MEMORY, SECONDS
    command = [sys.executable, __file__, str(path), *map(str, (*limits, int(exif_orientation)))]
    with tempfile.TemporaryFile() as answer:
        try:
            status = subprocess.run(
                command, stdout=answer, stderr=subprocess.DEVNULL, timeout=PATIENCE, env=_environment()
            ).returncode
        except subprocess.TimeoutExpired:
            status = -signal.SIGXCPU
        answer.seek(0)
        if status:
            raise _fault(path, status, answer.read(2000) if status == DAMAGED else b"")
        with Image.open(answer, formats=["PPM"]) as image:
            image.load()
            return image


class Reader:
    """A process that reads one image after another, each within the limits of `read_safely`.

    An image that ends the process is an error of that image: the next one gets a new process.
    """

    process: subprocess.Popen | None = None

    def read(self, path: Any, max_pixels: int | None = None, exif_orientation: bool = True) -> Image.Image:
        """`read_safely`, without the start of a process; one thread may call it at a time."""
        if self.process is None:
            pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self.process = subprocess.Popen([sys.executable, __file__, str(MEMORY)], env=_environment(), **pipes)
        process = self.process
        assert process.stdin and process.stdout
        patience = Timer(WITH_START, process.send_signal, [signal.SIGXCPU])
        patience.start()
        try:
            limits = SECONDS, min(max_pixels or PIXELS, PIXELS), exif_orientation
            process.stdin.write(json.dumps([str(path), *limits]).encode() + b"\n")
            process.stdin.flush()
            kind = process.stdout.readline()
            if kind == b"fault\n":
                raise _fault(path, DAMAGED, process.stdout.readline())
            if kind != b"P6\n":
                raise ValueError("the process has ended")
            width, height = map(int, process.stdout.readline().split())
            process.stdout.readline()  # the largest value, 255
            return Image.frombytes("RGB", (width, height), process.stdout.read(width * height * 3))
        except ImageError:
            raise
        except (OSError, ValueError) as error:
            self.close()
            raise _fault(path, process.returncode) from error
        finally:
            patience.cancel()

    def close(self) -> None:
        """End the process."""
        if process := self.process:
            self.process = None
            process.kill()
            process.communicate()


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}


def _fault(path: Any, status: int, text: bytes = b"") -> ImageError:
    """The error of an image whose process has ended with a status, or has written a line about it."""
    if status == -signal.SIGXCPU:
        return ImageError(f"the image {str(path)!r} takes more than {SECONDS} seconds: make it smaller")
    damaged = f"the image {str(path)!r} is damaged, or takes too much memory: replace it"
    return ImageError(text.decode(errors="replace").strip() or damaged)


def _main(path: str, pixels: int, memory: int, seconds: int, exif_orientation: int) -> None:
    """Write the image as a PPM file to stdout, or a line about it."""
    os.nice(19)  # answers to visitors go first
    _limit_memory(memory)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    try:
        read_image(path, pixels, bool(exif_orientation)).save(sys.stdout.buffer, "ppm")
    except ImageError as error:
        sys.stdout.buffer.write(str(error).encode(errors="replace"))
        sys.exit(DAMAGED)


def _limit_memory(memory: int) -> None:
    with suppress(OSError, ValueError):  # a system without limits of memory, such as macOS
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory,) * 2)


def _read_all(memory: int) -> None:
    """Write the image of each line of stdin, a path and limits, as `_main` does; a line about it follows `fault`."""
    os.nice(5)  # less than in `_main`: the model waits for these images
    _limit_memory(memory)
    for line in sys.stdin.buffer:
        used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        path, seconds, *options = json.loads(line)
        resource.setrlimit(resource.RLIMIT_CPU, (ceil(used) + seconds, resource.RLIM_INFINITY))
        try:
            read_image(path, *options).save(sys.stdout.buffer, "ppm")
        except ImageError as error:
            sys.stdout.buffer.write(b"fault\n" + " ".join(str(error).split()).encode(errors="replace") + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    path, *given = sys.argv[1:]
    _main(path, *map(int, given)) if given else _read_all(int(path))
