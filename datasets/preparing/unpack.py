"""Unpack archives safely: nothing is written outside a folder, and no more than images can take.

tarfile's filter="data" is not used: it needs Python 3.10.12, accepts links inside the folder and does not limit sizes.
"""

import errno
import gzip
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from tqdm import tqdm

from common.errors import UsageError, one_line

GROWTH, SPARE = 3, 1 << 28  # archives of images may grow to GROWTH times their size plus SPARE bytes, not beyond
MOST_FILES = 2_000_000  # folders included
HEADERS = 1 << 24  # bytes between two files of a tar
DIRECTORY = 64 * MOST_FILES  # bytes of the directory of a zip, which is read at once
BLOCK = 1 << 20
GZIP = b"\x1f\x8b"
IGNORED_NAMES = ("__MACOSX", ".DS_Store")  # in archives made on a Mac, as are names that begin with ._
DAMAGED: tuple[type[Exception], ...] = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError)
# zipfile and tarfile raise these for invalid names and numbers, and for headers that refer to one another.
DAMAGED += (struct.error, ValueError, LookupError, ArithmeticError, AttributeError, RuntimeError)
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


class Budget:
    """What may still come out of an archive and the archives in it.

    Args:
        limit: number of bytes of files, and number of decompressed bytes.
    """

    def __init__(self, limit: int):
        self.limit = self.bytes = self.decompressed = limit
        self.files = MOST_FILES

    def spend(self, files: int = 0, size: int = 0, decompressed: int = 0) -> None:
        self.files -= files
        self.bytes -= size
        self.decompressed -= decompressed
        if min(self.files, self.bytes, self.decompressed) < 0:
            raise DecompressionBomb(f"it grows to more than {self.limit:,} bytes or {MOST_FILES:,} files")


class TarStream:
    """The bytes of a tar, whose headers can be endless: at most HEADERS of them from one file to the next."""

    def __init__(self, stream: BinaryIO | gzip.GzipFile, budget: Budget):
        self.stream, self.budget = stream, budget
        self.expect(0)

    def expect(self, size: int) -> None:
        """A file of this size comes next, then headers."""
        self.left = size + HEADERS

    def read(self, size: int) -> bytes:
        block = self.stream.read(size)
        self.left -= len(block)
        if self.left < 0:
            raise DecompressionBomb(f"it has headers of more than {HEADERS:,} bytes")
        if isinstance(self.stream, gzip.GzipFile):
            self.budget.spend(decompressed=len(block))
        return block


class ZipStream:
    """The bytes of a zip, of which zipfile reads the directory of all files at once."""

    def __init__(self, stream: BinaryIO):
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def read(self, size: int = -1) -> bytes:
        if size > DIRECTORY:
            raise DecompressionBomb(f"the directory of its files has more than {DIRECTORY:,} bytes")
        return self.stream.read(size)


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
    bar = tqdm(total=size, unit="B", unit_scale=True, desc=f"unpacking {archive.name}")
    try:
        with open(archive, "rb") as file, bar:
            for member in members(file, nested_archives, Budget(GROWTH * size + SPARE)):
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
            f"not unpacked: invalid file name {str(error.filename)!r} ({error.strerror})", where=archive
        ) from None


def damaged(archive: Path, error: Exception) -> UsageError:
    return UsageError(f"incomplete, or not an archive ({one_line(error)})", where=archive)


def members(file: Any, nested_archives: str, budget: Budget) -> Iterator[Member]:
    """The regular files of an archive, in order, including those of nested archives.

    Args:
        file: a binary stream with `peek`.
        nested_archives: see `unpack`.
        budget: limits; they are shared by nested archives.

    Raises:
        UnsafeArchive: an absolute path, `..`, no name, a link, a device, a file with a password, or too much of it.
    """
    start = file.peek(4)[:4]
    for member in zip_members(file, budget) if start[:2] == b"PK" else tar_members(file, start[:2] == GZIP, budget):
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts:
            raise UnsafeArchive(f"it has {member.name!r}, which is outside its folder")
        if not name.parts:
            raise UnsafeArchive(f"it has a file with the name {member.name!r}")
        if any(part in IGNORED_NAMES or part.startswith("._") for part in name.parts):
            continue
        if nested_archives and fnmatch(name.name, nested_archives):
            with member.open() as content:
                parent = name.with_name(name.name.partition(".")[0])
                for below in members(content, "", budget):
                    yield below._replace(name=f"{parent}/{below.name}")
        else:
            budget.spend(size=member.size)
            yield member


def zip_members(file: BinaryIO, budget: Budget) -> Iterator[Member]:
    with zipfile.ZipFile(ZipStream(file)) as archive:  # type: ignore[arg-type]  # all of a BinaryIO
        budget.spend(files=len(archive.infolist()))
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UnsafeArchive(f"{info.filename!r} is a link or a device")
            if info.flag_bits & 1:
                raise UnsafeArchive(f"{info.filename!r} has a password")
            if not info.filename.endswith("/"):  # is_dir() fails without a name
                yield Member(info.filename, info.file_size, partial(archive.open, info))


def tar_members(file: BinaryIO, zipped: bool, budget: Budget) -> Iterator[Member]:
    stream: Any = TarStream(gzip.GzipFile(fileobj=file) if zipped else file, budget)
    with tarfile.open(fileobj=stream, mode="r|", bufsize=BLOCK) as archive:
        while info := archive.next():
            archive.members.clear()  # type: ignore[attr-defined]  # they would fill the memory
            budget.spend(files=1)
            if not (info.isreg() or info.isdir()):
                raise UnsafeArchive(f"{info.name!r} is a link or a device")
            stream.expect(info.size)
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
