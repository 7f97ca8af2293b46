"""Unpack archives safely: nothing is written outside a folder, and no more than images can take.

tarfile's filter="data" is not used: it needs Python 3.10.12, accepts links inside the folder and does not limit sizes.
"""

import errno
import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from tqdm import tqdm

from common.errors import UsageError

GROWTH, SPARE = 3, 1 << 28  # archives of images may grow to GROWTH times their size plus SPARE bytes, not beyond
MOST_FILES = 5_000_000
BLOCK = 1 << 20
IGNORED_NAMES = ("__MACOSX", ".DS_Store")  # in archives made on a Mac, as are names that begin with ._
DAMAGED: tuple[type[Exception], ...] = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError)
DAMAGED += (NotImplementedError, ValueError, OverflowError)  # the latter for invalid numbers and names
DAMAGED_ERRNO = (None, errno.EINVAL)  # bz2's error for damaged data; seeking before the beginning
INVALID_NAME_ERRNO = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)


class Member(NamedTuple):
    """A regular file in an archive: its path, its declared size in bytes, and a function that opens it."""

    name: str
    size: int
    open: Callable[[], Any]  # a binary stream with `peek`


class UnsafeArchive(Exception):
    """Raised for archives that contain what archives of images do not."""


class DecompressionBomb(UnsafeArchive):
    """Raised for archives that contain far more data or files than images can be."""

    def __init__(self, limit: int):
        super().__init__(f"it grows to more than {limit:,} bytes or {MOST_FILES:,} files")


class LimitedStream:
    """A stream that raises `DecompressionBomb` after a number of bytes, as headers of a tar can be endless, too."""

    def __init__(self, stream: BinaryIO | gzip.GzipFile, limit: int):
        self.stream, self.limit, self.left = stream, limit, limit

    def read(self, size: int) -> bytes:
        block = self.stream.read(size)
        self.left -= len(block)
        if self.left < 0:
            raise DecompressionBomb(self.limit)
        return block


def unpack(archive: Path, folder: Path, map_path: Callable[[str], str | None], nested_archives: str = "") -> None:
    """Write files of a zip, tar or tar.gz archive below a folder.

    Existing files of the right size are not written again, so an interrupted call can be repeated.

    Args:
        archive: the archive.
        folder: target folder; no other process writes there.
        map_path: path in the archive -> path below `folder`, or None to skip the file.
        nested_archives: name pattern of archives inside the archive; their files count as in a folder of their name
            without its suffixes.

    Raises:
        UsageError: the archive is damaged, contains an absolute path, `..`, a link or a device, or is too large.
    """
    size = archive.stat().st_size
    allowed = limit = GROWTH * size + SPARE
    bar = tqdm(total=size, unit="B", unit_scale=True, desc=f"unpacking {archive.name}")
    try:
        with open(archive, "rb") as file, bar:
            for count, member in enumerate(members(file, nested_archives, limit)):
                allowed -= member.size
                if allowed < 0 or count > MOST_FILES:
                    raise DecompressionBomb(limit)
                path = map_path(member.name)
                if path is not None:
                    write(member, folder / path)
                bar.update(file.tell() - bar.n)
    except DAMAGED as error:
        raise damaged(archive, error) from None
    except UnsafeArchive as error:
        raise UsageError(f"unsafe archive, not unpacked: {error}", where=archive) from None
    except OSError as error:
        if error.errno in DAMAGED_ERRNO:
            raise damaged(archive, error) from None
        if error.errno not in INVALID_NAME_ERRNO:
            raise
        raise UsageError(
            f"not unpacked: invalid file name {error.filename} ({error.strerror})", where=archive
        ) from None


def damaged(archive: Path, error: Exception) -> UsageError:
    return UsageError(f"incomplete, or not an archive ({error or 'it ends too early'})", where=archive)


def members(file: Any, nested_archives: str, limit: int) -> Iterator[Member]:
    """The regular files of an archive, in order, including those of nested archives.

    Args:
        file: a binary stream with `peek`.
        nested_archives: see `unpack`.
        limit: number of bytes that may be decompressed.

    Raises:
        UnsafeArchive: an absolute path, `..`, a link, a device, a file with a password, or more than `limit` bytes.
    """
    start = file.peek(4)[:4]
    for member in zip_members(file) if start[:2] == b"PK" else tar_members(file, start[:2] == b"\x1f\x8b", limit):
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts:
            raise UnsafeArchive(f"it has {member.name!r}, which is outside its folder")
        if not name.parts or any(part in IGNORED_NAMES or part.startswith("._") for part in name.parts):
            continue
        if nested_archives and fnmatch(name.name, nested_archives):
            with member.open() as content:
                parent = name.with_name(name.name.partition(".")[0])
                for below in members(content, "", limit):
                    yield below._replace(name=f"{parent}/{below.name}")
        else:
            yield member


def zip_members(file: BinaryIO) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UnsafeArchive(f"{info.filename!r} is a link or a device")
            if info.flag_bits & 1:
                raise UnsafeArchive(f"{info.filename!r} has a password")
            if not info.is_dir():
                yield Member(info.filename, info.file_size, partial(archive.open, info))


def tar_members(file: BinaryIO, zipped: bool, limit: int) -> Iterator[Member]:
    stream: Any = LimitedStream(gzip.GzipFile(fileobj=file), limit) if zipped else file
    with tarfile.open(fileobj=stream, mode="r|", bufsize=BLOCK) as archive:
        for info in archive:
            if not (info.isreg() or info.isdir()):
                raise UnsafeArchive(f"{info.name!r} is a link or a device")
            if info.isreg():
                yield Member(info.name, info.size, partial(archive.extractfile, info))
    while zipped and stream.read(BLOCK):  # to the end, where gzip's checksum is
        pass


def write(member: Member, path: Path) -> None:
    """Write a file of exactly its declared size."""
    if path.is_file() and path.stat().st_size == member.size:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    left = member.size
    with member.open() as content, open(path, "wb") as out:
        while block := content.read(BLOCK):
            left -= len(block)
            if left < 0:
                raise UnsafeArchive(f"{member.name!r} is larger than declared")
            out.write(block)
    if left:
        raise EOFError(f"{member.name} ends too early")
