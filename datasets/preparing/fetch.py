"""The published files of datasets: fetched, verified and unpacked."""

import shutil
from pathlib import Path

from common.download import TIMEOUT, DownloadError, download, reason, unpack
from common.errors import UsageError
from common.files import checksum

from ..files import File


def fetch(file: File, folder: Path, remedy: str, mirror: str = "") -> Path:
    """Download a file into a folder and verify it. NAME.partial of an earlier try is resumed.

    Args:
        file: its name, address or Google Drive id, published size and checksum.
        folder: an existing folder.
        remedy: what to do if the file is not available.
        mirror: address of a folder to download NAME from, instead of the file's own address.

    Raises UsageError if it is not available, or is not the published file; then it is deleted.
    """
    partial = folder / f"{file.name}.partial"
    address = f"{mirror}/{file.name}" if mirror else file.url
    try:
        if address:
            download(address, partial, file.max_bytes)
        else:
            download_from_drive(file, partial)
        if fault := difference(partial, file):
            partial.unlink()
            raise DownloadError(fault)
    except DownloadError as error:
        kept = f" ({partial.stat().st_size:,} bytes received)" if partial.exists() else ""
        fault = f"cannot download {file.name} from {address or file.link}: {error}{kept}"
        raise UsageError(
            fault, f"run the same command again{' to resume' if kept else ''}, or {remedy}"
        ) from error
    return partial.replace(folder / file.name)


def download_from_drive(file: File, partial: Path) -> None:
    """Download from Google Drive with gdown, which resumes from a .part file of its own."""
    import gdown  # slow to import, and few files need it

    def check_size(received: int, total: int | None) -> None:
        if received > file.max_bytes:
            raise ValueError(f"the file has more than {file.max_bytes:,} bytes there")

    try:
        gdown.download(
            id=file.drive, output=str(partial), resume=True, timeout=TIMEOUT, progress=check_size
        )
    except Exception as error:  # its exceptions changed with its versions
        raise DownloadError(reason(error)) from error


def difference(path: Path, file: File) -> str:
    """How a file differs from the published one in size or checksum; empty if it does not."""
    size = path.stat().st_size
    if file.bytes and size != file.bytes:
        return f"it has {size:,} bytes, {file.bytes:,} as published"
    if file.checksum:
        kind, expected = file.checksum
        print(f"Verifying the {kind} of {file.name}")
        if checksum(path, kind) != expected:
            return f"its {kind} is wrong"
    return ""


def unpack_file(archive: Path, folder: Path, nested: str = "") -> None:
    """Unpack an archive into a new folder; an earlier folder is deleted.

    Args:
        archive, folder: as for `unpack`.
        nested: name pattern of archives in the archive. Each is replaced by a folder of its name
            without suffixes.
    """
    shutil.rmtree(folder, ignore_errors=True)
    unpack(archive, folder)
    for inner in sorted(folder.rglob(nested)) if nested else []:
        unpack(inner, inner.with_name(inner.name.partition(".")[0]))
        inner.unlink()
