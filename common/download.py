"""Downloads over http(s) that resume after an interruption, and archives that are unpacked into one
folder.
"""

import shutil
import tarfile
import time
import zipfile
from pathlib import Path

from .errors import UsageError, one_line
from .version import __version__

TRIES = 10  # requests for a file
OFFLINE = 3  # the same, if the server's name is not found
PAUSE = 3.0  # seconds between two of them
TIMEOUT = 30  # seconds without a byte
BLOCK = 1 << 16  # bytes that are written at once


class DownloadError(Exception):
    """Raised when a file cannot be downloaded, or is not the published one."""


def reason(error: Exception) -> str:
    """Why a download has failed, in one line."""
    # Of a NameResolutionError, which is the cause of an error of requests
    unknown = "resolve" in str(error)
    return "the server's name is not found: is there a connection?" if unknown else one_line(error)


def download(url: str, partial: Path, most: int) -> None:
    """Download a file over http(s), or the rest of it.

    Args:
        url: its address.
        partial: where to write it; bytes that are there already are not downloaded again.
        most: upper bound on its size in bytes.

    Raises:
        DownloadError: the server cannot be reached, has no such file, or a larger one. Received
            bytes stay in `partial`, unless they are too many.
        OSError: `partial` cannot be written.
    """
    import requests  # only downloads need it
    from urllib3.exceptions import HTTPError

    for tries_left in reversed(range(TRIES)):
        try:
            receive(url, partial, most)
            return
        except (
            requests.RequestException,
            HTTPError,
            ValueError,
        ) as error:  # the last is about an address
            status = getattr(getattr(error, "response", None), "status_code", None)
            is_final = isinstance(error, ValueError) or (status and status < 500 and status != 429)
            offline = "resolve" in str(error) and tries_left <= TRIES - OFFLINE
            if is_final or offline or not tries_left:
                raise DownloadError(reason(error)) from error
            print(f"{partial.name}: {reason(error)}: trying again")
            time.sleep(PAUSE)


def receive(url: str, partial: Path, most: int) -> None:
    """Send one request for the missing bytes, and append those that arrive: see `download`."""
    import requests
    from tqdm import tqdm

    start = partial.stat().st_size if partial.exists() else 0
    headers = {
        "User-Agent": f"modular-prompt-learning/{__version__}",
        "Accept-Encoding": "identity",
    }
    if start:
        headers["Range"] = f"bytes={start}-"
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if start and response.status_code == 416:  # there are no more bytes
            return
        response.raise_for_status()
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise DownloadError("the server sends a web page instead of the file")
        if response.status_code != 206:  # the server sends the file from its first byte
            start = 0
        total = start + (response.raw.length_remaining or 0) or None
        with (
            open(partial, "ab" if start else "wb") as file,
            tqdm(initial=start, total=total, unit="B", unit_scale=True, desc=partial.name) as bar,
        ):
            for block in response.raw.stream(BLOCK, decode_content=False):  # a .tar.gz stays one
                file.write(block)
                bar.update(len(block))
                if file.tell() > most:
                    partial.unlink()
                    raise DownloadError(f"the file has more than {most:,} bytes there")


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar archive into a folder, which may exist.

    Nothing is written outside the folder: `zipfile` removes absolute paths and `..` from the names
    and makes no links; `tarfile`'s filter "data" refuses them, and devices.

    Raises:
        UsageError: the archive is damaged, or has a member that is refused.
        OSError: the disk is full, or the folder is not writable.
    """
    from tqdm import tqdm

    if not hasattr(tarfile, "data_filter"):
        raise UsageError(
            "this Python cannot unpack archives safely", "update it to 3.10.12, 3.11.4 or newer"
        )
    label = f"unpacking {archive.name}"
    try:
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tar:
                tar.extractall(folder, tqdm(tar, label, disable=None), filter="data")
                while tar.fileobj.read(BLOCK):  # gzip's checksum is behind the last member
                    pass
        else:
            with zipfile.ZipFile(archive) as container:
                container.extractall(folder, tqdm(container.namelist(), label, disable=None))
    except Exception as error:  # as many kinds as there are ways to damage an archive
        if isinstance(error, OSError) and error.errno:
            raise
        fault = (
            f"{archive} is damaged, or not a safe archive, and was not unpacked ({one_line(error)})"
        )
        raise UsageError(fault, "download it again", archive) from None
    # Copies of the names in archives made on a Mac
    shutil.rmtree(folder / "__MACOSX", ignore_errors=True)
