"""Images in tars, as webdataset writes them: found by their headers, and read in place."""

import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import UsageError, one_line
from common.image_files import is_image

RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")  # as in {00000..00009}.tar
LARGEST_HEADER = 1 << 20  # bytes
MAX_BYTES = 32_000_000  # of an image, as of a file


class Member(NamedTuple):
    """An image in a tar.

    Attributes:
        key: its path without the endings, as webdataset has it.
        start, size: of its content in the tar.
        fault: why it cannot be read.
    """

    tar: Path
    key: str
    start: int = 0
    size: int = 0
    fault: str = ""

    def __str__(self) -> str:
        return self.key

    def read(self) -> bytes:
        """The content of the image; UsageError if it cannot be read."""
        if self.fault:
            raise UsageError(self.fault, "replace the tar", self.tar)
        if self.size > MAX_BYTES:
            raise UsageError(
                f"{self.key} has more than {MAX_BYTES:,} bytes", "shorten it", self.tar
            )
        with open(self.tar, "rb") as file:
            file.seek(self.start)
            return file.read(self.size)


class Headers(io.FileIO):
    """A file of which at most LARGEST_HEADER bytes are read at a time."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= LARGEST_HEADER:
            raise ValueError("a header is too large")
        return super().read(size)


def is_tar(path: Any) -> bool:
    return path.suffix.lower() == ".tar"


def expanded(path: Any) -> Iterator[Any]:
    """The paths of a range such as {00000..00009} in a path."""
    found = RANGE.search(str(path))
    if not found or not isinstance(path, Path) or path.exists():
        yield path
        return
    first, last = found.groups()
    if int(last) < int(first):
        raise UsageError(f"{path} has a range without numbers", "write the smaller one first")
    before = str(path)[: found.start()]
    after = str(path)[found.end() :]
    for number in range(int(first), int(last) + 1):
        yield from expanded(Path(f"{before}{number:0{len(first)}}{after}"))


def members_in(file: Path) -> list[Member]:
    """The images in a tar; the last one has a fault if the tar is damaged or cut short."""
    members = []
    try:
        for member in members_by_headers(file):
            members.append(member)
    except (OSError, ValueError, RecursionError, tarfile.TarError) as error:
        fault = f"{file} is cut short or no tar ({one_line(error)})"
        members.append(Member(file, file.name, fault=fault))
    return members


def members_by_headers(file: Path) -> Iterator[Member]:
    if not file.is_file():
        raise ValueError("there is no such file")
    size = file.stat().st_size
    with Headers(file) as headers, tarfile.open(fileobj=headers, mode="r:") as archive:
        while (info := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # or the memory fills
            if not info.offset < archive.offset or info.offset_data + info.size > size:
                raise ValueError(f"it ends within {info.name}")
            folder, slash, name = info.name.rpartition("/")
            is_hidden = name.startswith(".")
            if info.isreg() and not info.issparse() and is_image(name) and not is_hidden:
                key = folder + slash + name.partition(".")[0]
                yield Member(file, key, info.offset_data, info.size)
        # tarfile also stops at a header that is damaged
        headers.seek(archive.offset)
        if headers.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError("its end is missing")
