"""Downloads of datasets' files, verified by size and checksum."""

from glob import escape
from pathlib import Path

from tqdm import tqdm

from common.download import TransferError, WrongFile, size_of, supervise, transfer
from common.errors import UsageError, one_line
from common.files import checksum

from ..files import File


def fetch(file: File, folder: Path, remedy: str, mirror: str = "") -> Path:
    """Download a file into a folder and verify it. NAME.partial of an earlier try is resumed.

    Args:
        file: its name, address or Google Drive id, published size and checksum.
        folder: an existing folder.
        remedy: what to do if the file is not available.
        mirror: address of a folder to download NAME from, instead of the file's own address.

    Raises:
        UsageError: it is not available, or is not the published file.
    """
    target = folder / file.name
    address = f"{mirror}/{file.name}" if mirror else file.url
    try:
        if address:
            download(address, target, file)
        else:
            download_from_drive(file, target)
    except TransferError as error:
        kept = size_of(partial_of(target))
        received, again = f" ({kept:,} bytes received)" if kept else "", "to resume" if kept else "later"
        raise UsageError(
            f"cannot download {file.name} from {address or file.link}: {error}{received}",
            f"run the same command again {again}, or {remedy}",
        ) from error
    except WrongFile as error:
        raise UsageError(f"cannot download {file.name} from {address or file.link} ({error})", remedy) from error
    return target


def partial_of(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


def download(url: str, target: Path, file: File) -> None:
    """Download from http(s) to a file, by way of NAME.partial.

    Raises:
        TransferError: the tries are used up; received bytes stay in NAME.partial.
        WrongFile: it is not the published file.
    """
    partial = partial_of(target)
    resumed = size_of(partial) > 0
    while True:
        transfer(url, partial, file.name, file.bytes, file.max_bytes)
        try:
            verify(partial, file)
            break
        except WrongFile:
            partial.unlink()
            if not resumed:
                raise
            print(f"{file.name} is not the published file: downloading all of it again, as it was resumed")
            resumed = False
    partial.replace(target)


def download_from_drive(file: File, target: Path) -> None:
    """Download from Google Drive with gdown, which resumes from a .part file of its own.

    Raises:
        TransferError: it is too slow, or there is no connection.
        WrongFile: it is not available, or not the published file.
    """
    import gdown  # slow to import, and few files need it
    import requests  # which gdown uses

    def received() -> int:
        return sum(size_of(path) for path in target.parent.glob(f"{escape(target.name)}*"))

    try:
        supervise(lambda: gdown.download(id=file.drive, output=str(target), resume=True), received, file.max_bytes)
    except TransferError:
        raise
    except requests.ConnectionError as error:
        raise TransferError("there is no connection to the server") from error
    except Exception as error:  # its exceptions changed with its versions
        raise WrongFile(one_line(error)) from error
    if not target.is_file():
        raise WrongFile("gdown received nothing")
    try:
        verify(target, file)
    except WrongFile:
        target.unlink()
        raise


def verify(path: Path, file: File) -> None:
    """Raise WrongFile unless a file can be the published one by its kind, size and checksum."""
    with open(path, "rb") as content:
        head = content.read(200).lstrip().lower()
    if head.startswith((b"<!doctype", b"<html")):
        raise WrongFile("a web page instead of the file")
    size = size_of(path)
    if file.bytes and size != file.bytes:
        raise WrongFile(f"it has {size:,} bytes, {file.bytes:,} as published")
    if file.checksum:
        kind, expected = file.checksum
        with tqdm(total=size, unit="B", unit_scale=True, desc=f"{kind} of {path.name}") as bar:
            if checksum(path, kind, bar.update) != expected:
                raise WrongFile(f"its {kind} is wrong")
