"""Unpack archives safely: nothing is written outside a folder, no links, and no more than images can take."""

import errno
import gzip
import shutil
import stat
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from common.errors import UsageError, one_line

GROWTH, SPARE = 3, 1 << 28  # archives of images may grow to GROWTH times their size plus SPARE bytes, not beyond
MOST_FILES = 2_000_000  # folders included
MOST_AT_ONCE = 1 << 24  # bytes of a header of a tar, or of the directory of a zip
IGNORED_NAMES = ("__MACOSX", ".DS_Store")  # in archives made on a Mac, as are names that begin with ._
# Of errors that damaged files and invalid names cause, and not the disk
DAMAGED_ERRNO = (None, errno.EINVAL, errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


class UnsafeArchive(ValueError):
    """Raised for archives that contain what archives of images do not, or far more than images can be."""


class Stream:
    """The bytes of an archive, with limits: tarfile reads a header, and zipfile the directory, in one piece.

    Args:
        file: a binary stream.
        left: what may still come out of this archive and those in it: `files`, `bytes` of them, and bytes to `read`.
    """

    def __init__(self, file: Any, left: Counter):
        self.file, self.left = file, left

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def spend(self, **amounts: int) -> None:
        self.left.subtract(amounts)
        if min(self.left.values()) < 0:
            raise UnsafeArchive("it grows to more files or bytes than images can take")

    def read(self, size: int = -1) -> bytes:
        if not -1 <= size <= MOST_AT_ONCE:
            raise UnsafeArchive(f"a header, or the directory of its files, has more than {MOST_AT_ONCE:,} bytes")
        block = self.file.read(size)
        self.spend(read=len(block))
        return block


def unpack(archive: Path, folder: Path, nested: str = "") -> None:
    """Unpack a zip, tar or tar.gz archive.

    Args:
        archive: the archive.
        folder: the target, which is deleted first; no other process writes there.
        nested: name pattern of archives in the archive. Each is unpacked into a folder of its name without suffixes.

    Raises:
        UsageError: the archive is damaged, contains an absolute path, `..`, a link or a device, or is too large.
    """
    if not hasattr(tarfile, "data_filter"):
        raise UsageError("this Python cannot unpack archives safely", "update it to 3.10.12, 3.11.4 or 3.12")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    size = archive.stat().st_size
    left = Counter(files=MOST_FILES, bytes=GROWTH * size + SPARE, read=GROWTH * size + SPARE)
    try:
        with open(archive, "rb") as file, tqdm(total=size, unit="B", unit_scale=True, desc="unpacking") as bar:
            extract(file, folder, nested, left, bar)
    except MemoryError:
        raise
    except Exception as error:  # as many kinds as there are ways to damage an archive
        if isinstance(error, OSError) and error.errno not in DAMAGED_ERRNO:
            raise
        what = "unsafe" if isinstance(error, UnsafeArchive) else "incomplete, or not an archive"
        raise UsageError(f"{what}, not unpacked ({one_line(error)})", where=archive) from None


def extract(file: Any, folder: Path, nested: str, left: Counter, bar: tqdm | None = None) -> None:
    """Unpack an archive that is a binary stream with `peek`."""
    start = file.peek(2)[:2]
    gzipped = start == b"\x1f\x8b"
    stream = Stream(gzip.GzipFile(fileobj=file) if gzipped else file, left)
    for name, size, regular, read, write in zip_members(stream) if start == b"PK" else tar_members(stream):
        path = PurePosixPath(name)
        if size < 0 or path.is_absolute() or ".." in path.parts:
            raise UnsafeArchive(f"it has {name!r}, which is outside its folder, or smaller than nothing")
        if not regular:
            raise UnsafeArchive(f"{name!r} is a link or a device")
        stream.spend(files=1, bytes=size)
        if nested and fnmatch(path.name, nested):
            with read() as inner:
                extract(inner, folder / path.with_name(path.name.partition(".")[0]), "", left)
        elif not any(part in IGNORED_NAMES or part.startswith("._") for part in path.parts):
            write(folder)
        if bar is not None:
            bar.update(file.tell() - bar.n)
    while gzipped and stream.read(MOST_AT_ONCE):  # to the end, where gzip's checksum is
        pass


def zip_members(stream: Any) -> Iterator[tuple[str, int, bool, Callable, Callable]]:
    """Name, size, whether it is a file or a folder, a function that opens it, and one that writes it to a folder."""
    with zipfile.ZipFile(stream) as archive:
        for info in archive.infolist():
            regular = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)
            yield info.filename, info.file_size, regular, partial(archive.open, info), partial(archive.extract, info)


def tar_members(stream: Any) -> Iterator[tuple[str, int, bool, Callable, Callable]]:
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        while info := archive.next():
            archive.members.clear()  # type: ignore[attr-defined]  # they would fill the memory
            write = partial(archive.extract, info, filter="data")
            yield info.name, info.size, info.isreg() or info.isdir(), partial(archive.extractfile, info), write
