"""Unpacking that can't leave its folder, nor fill the disk."""

import errno
import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from tqdm import tqdm

from common.errors import UsageError

GROWTH, SPARE = 3, 1 << 28  # images hardly shrink in an archive: what grows beyond this (bytes) is a bomb
MOST_FILES = 5_000_000
BLOCK = 1 << 20
JUNK = ("__MACOSX", ".DS_Store")  # of archives made on a Mac, as are names that begin with ._
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, gzip.BadGzipFile, NotImplementedError)
DAMAGED += (lzma.LZMAError, ValueError, OverflowError)  # the latter for numbers and names in it that cannot be
NONSENSE = (None, errno.EINVAL)  # what bz2 calls damaged data, and what a place before the beginning is
IMPOSSIBLE = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)  # names: too long, or of file and folder


class Member(NamedTuple):
    """A regular file in an archive: its path, its declared size in bytes, and a function that opens it."""

    name: str
    size: int
    open: Callable[[], BinaryIO]


class Hostile(Exception):
    """An archive does what archives of images don't."""


class Bomb(Hostile):
    """An archive holds far more than it should."""

    def __init__(self, limit: int):
        super().__init__(f"it grows to more than {limit:,} bytes or {MOST_FILES:,} files")


class Limited:
    """A stream that ends in `Bomb` after so many bytes: headers of a tar, too, can be endless."""

    def __init__(self, stream: BinaryIO, limit: int):
        self.stream, self.limit, self.left = stream, limit, limit

    def read(self, size: int) -> bytes:
        block = self.stream.read(size)
        self.left -= len(block)
        if self.left < 0:
            raise Bomb(self.limit)
        return block


def unpack(archive: Path, folder: Path, place: Callable[[str], str | None], inner: str = "") -> None:
    """Write files of a zip, tar or tar.gz archive below a folder.

    A file that is there with the right size is not written again, so unpacking that was interrupted goes on.

    Args:
        archive: the file.
        folder: where to; nobody else writes there.
        place: path in the archive -> path below `folder`, None for what is not wanted.
        inner: pattern of the names of archives inside; what they hold counts as in a folder of their name, without
            its suffixes.

    Raises:
        UsageError: the archive is damaged; holds an absolute path, `..`, a link or a device; or is too large.
    """
    size = archive.stat().st_size
    allowed = limit = GROWTH * size + SPARE
    bar = tqdm(total=size, unit="B", unit_scale=True, desc=f"unpacking {archive.name}")
    try:
        with open(archive, "rb") as file, bar:
            for count, member in enumerate(members(file, inner, limit)):
                allowed -= member.size
                if allowed < 0 or count > MOST_FILES:
                    raise Bomb(limit)
                path = place(member.name)
                if path is not None:
                    write(member, folder / path)
                bar.update(file.tell() - bar.n)
    except DAMAGED as error:
        raise UsageError(f"{archive} is cut off, or no archive ({error or 'it ends too early'})") from None
    except Hostile as error:
        raise UsageError(f"{archive} is not unpacked: {error}") from None
    except OSError as error:
        if error.errno in NONSENSE:
            raise UsageError(f"{archive} is cut off, or no archive ({error})") from None
        if error.errno not in IMPOSSIBLE:
            raise
        raise UsageError(f"{archive} is not unpacked: no file can be {error.filename} ({error.strerror})") from None


def members(file: BinaryIO, inner: str, limit: int) -> Iterator[Member]:
    """The regular files of an archive, in order; those that match `inner` are opened in their turn.

    Raises:
        Hostile: an absolute path, `..`, a link, a device, a file with a password, or more than `limit` bytes.
    """
    start = file.peek(4)[:4]
    for member in zip_members(file) if start[:2] == b"PK" else tar_members(file, start[:2] == b"\x1f\x8b", limit):
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts:
            raise Hostile(f"it holds {member.name!r}, which is outside")
        if not name.parts or any(part in JUNK or part.startswith("._") for part in name.parts):
            continue
        if inner and fnmatch(name.name, inner):
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
                raise Hostile(f"{info.filename!r} is a link or a device")
            if info.flag_bits & 1:
                raise Hostile(f"{info.filename!r} has a password")
            if not info.is_dir():
                yield Member(info.filename, info.file_size, lambda info=info: archive.open(info))


def tar_members(file: BinaryIO, zipped: bool, limit: int) -> Iterator[Member]:
    stream = Limited(gzip.GzipFile(fileobj=file), limit) if zipped else file
    with tarfile.open(fileobj=stream, mode="r|", bufsize=BLOCK) as archive:
        for info in archive:
            if not (info.isreg() or info.isdir()):
                raise Hostile(f"{info.name!r} is a link or a device")
            if info.isreg():
                yield Member(info.name, info.size, lambda info=info: archive.extractfile(info))
    while zipped and stream.read(BLOCK):  # to its end, where the checksum is
        pass


def write(member: Member, path: Path) -> None:
    """Write a file, its declared size and no more."""
    if path.is_file() and path.stat().st_size == member.size:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    left = member.size
    with member.open() as content, open(path, "wb") as out:
        while block := content.read(BLOCK):
            left -= len(block)
            if left < 0:
                raise Hostile(f"{member.name!r} is larger than it says")
            out.write(block)
    if left:
        raise EOFError(f"{member.name} ends too early")
