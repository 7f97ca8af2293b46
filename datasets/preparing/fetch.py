"""Downloads of datasets' files, verified by size and checksum."""

from pathlib import Path

from tqdm import tqdm

from common.download import TIMEOUT, TransferError, WrongFile, size_of, transfer
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
        UsageError: it is not available, or is not the published file; then it is deleted.
    """
    target, partial = folder / file.name, folder / f"{file.name}.partial"
    address = f"{mirror}/{file.name}" if mirror else file.url
    try:
        if address:
            transfer(address, partial, file.name, file.bytes, file.max_bytes)
        else:
            download_from_drive(file, partial)
        try:
            verify(partial, file)
        except WrongFile:
            partial.unlink()
            raise
    except (TransferError, WrongFile) as error:
        kept = f" ({size_of(partial):,} bytes received)" if size_of(partial) else ""
        what = f"cannot download {file.name} from {address or file.link}: {error}{kept}"
        raise UsageError(what, f"run the same command again{' to resume' if kept else ''}, or {remedy}") from error
    return partial.replace(target)


def download_from_drive(file: File, partial: Path) -> None:
    """Download from Google Drive with gdown, which resumes from a .part file of its own."""
    import gdown  # slow to import, and few files need it

    def check_size(received: int, total: int | None) -> None:
        if received > file.max_bytes:
            raise WrongFile(f"it does not end after {file.max_bytes:,} bytes")

    try:
        gdown.download(id=file.drive, output=str(partial), resume=True, timeout=TIMEOUT, progress=check_size)
    except Exception as error:  # its exceptions changed with its versions
        raise WrongFile(one_line(error)) from error


def verify(path: Path, file: File) -> None:
    """Raise WrongFile unless a file has the published size and checksum."""
    size = size_of(path)
    if file.bytes and size != file.bytes:
        raise WrongFile(f"it has {size:,} bytes, {file.bytes:,} as published")
    if file.checksum:
        kind, expected = file.checksum
        with tqdm(total=size, unit="B", unit_scale=True, desc=f"{kind} of {file.name}") as bar:
            if checksum(path, kind, bar.update) != expected:
                raise WrongFile(f"its {kind} is wrong")
