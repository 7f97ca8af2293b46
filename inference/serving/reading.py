"""Images of visitors, read by processes of their own: a decoder of images may take any memory and
time.
"""

import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from math import ceil
from pathlib import Path
from queue import LifoQueue
from select import poll
from typing import IO, Any

from dassl.utils.images import MAX_BYTES, ImageError, read_image
from PIL import Image

from common.text import read_bytes

PIXELS = 25_000_000
MEMORY = 256 << 20  # bytes, beyond those of an idle process
SECONDS = 5  # of the processor
PATIENCE = (
    120  # seconds without an answer: a busy machine is slow, above all when it starts a process
)
STRIP = 1 << 22  # bytes of an image that are read in one step, while other threads wait
NICE = 10  # answers to visitors go first, but the model waits for these images
PIPES: dict[str, Any] = {
    "stdin": subprocess.PIPE,
    "stdout": subprocess.PIPE,
    "stderr": subprocess.DEVNULL,
}


class Readers:
    """Processes that read images: in parallel, and each process one image after another.

    A process starts when it is needed for the first time. Several threads may read.
    """

    def __init__(self, number: int):
        self.readers = [Reader() for _ in range(number)]
        self.idle: LifoQueue[Reader] = LifoQueue()
        for reader in self.readers:
            self.idle.put(reader)

    def read(
        self, image: Any, max_pixels: int | None = None, exif_orientation: bool = True
    ) -> Image.Image:
        """`read_image` of a file or its content within PIXELS, MEMORY and SECONDS; it waits for an
        idle process.
        """
        content = image if isinstance(image, bytes) else read_bytes(image, MAX_BYTES)
        reader = self.idle.get()
        try:
            return reader.read(content, min(max_pixels or PIXELS, PIXELS), exif_orientation)
        except ImageError as error:
            name = "in memory" if isinstance(image, bytes) else repr(str(image))
            raise ImageError(str(error).replace("in memory", name)) from error
        finally:
            self.idle.put(reader)

    def close(self) -> None:
        """End the processes."""
        for reader in self.readers:
            reader.close()


class Reader:
    """One process. An image that ends it is an error of that image: the next one gets a new
    process.
    """

    process: subprocess.Popen | None = None

    def read(self, content: bytes, *options: Any) -> Image.Image:
        """`read_image`; one thread may call it at a time."""
        if self.process is None:
            paths = os.pathsep.join(filter(None, sys.path))
            environment = os.environ | {"PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"}
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(MEMORY)], env=environment, **PIPES
            )
        process = self.process
        assert process.stdin and process.stdout
        try:
            process.stdin.write(json.dumps([len(content), SECONDS, *options]).encode() + b"\n")
            process.stdin.write(content)
            process.stdin.flush()
            answer = poll()
            answer.register(process.stdout)
            if not answer.poll(PATIENCE * 1000):
                process.send_signal(signal.SIGXCPU)
            return image_from(process.stdout)
        except ImageError:
            raise
        except (OSError, ValueError) as error:
            self.close()
            if process.returncode == -signal.SIGXCPU:
                fault = f"the image in memory takes more than {SECONDS} seconds: make it smaller"
            else:
                fault = "the image in memory is damaged, or takes too much memory: replace it"
            raise ImageError(fault) from error

    def close(self) -> None:
        """End the process."""
        if process := self.process:
            self.process = None
            process.kill()
            process.communicate()


def image_from(stream: IO[bytes]) -> Image.Image:
    """The image that a process has written, as PPM; ImageError for its fault."""
    kind = stream.readline()
    if kind == b"fault\n":
        raise ImageError(stream.readline().decode().strip())
    if kind != b"P6\n":
        raise ValueError("the process has ended")
    width, height = map(int, stream.readline().split())
    stream.readline()  # the largest value, 255
    image = Image.new("RGB", (width, height))
    rows = max(1, STRIP // (3 * width))
    for top in range(0, height, rows):
        size = width, min(rows, height - top)
        strip = Image.frombytes("RGB", size, stream.read(3 * size[0] * size[1]))
        image.paste(strip, (0, top))
    return image


def _read_all(memory: int) -> None:
    """Write the image after each line of stdin, its length and limits, as PPM to stdout, or a line
    after `fault`.
    """
    os.nice(NICE)
    with suppress(OSError, ValueError):  # a system without limits of memory, such as macOS
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory,) * 2)
    for line in sys.stdin.buffer:
        length, seconds, *options = json.loads(line)
        content = sys.stdin.buffer.read(length)
        used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        resource.setrlimit(resource.RLIMIT_CPU, (ceil(used) + seconds, resource.RLIM_INFINITY))
        try:
            read_image(content, *options).save(sys.stdout.buffer, "ppm")
        except ImageError as error:
            sys.stdout.buffer.write(
                b"fault\n" + " ".join(str(error).split()).encode(errors="replace") + b"\n"
            )
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _read_all(int(sys.argv[1]))
