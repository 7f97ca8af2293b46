"""Resumable downloads, verified by size and checksum."""

import re
import time
from pathlib import Path

import requests
import urllib3.exceptions
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.util import Retry

from common.errors import UsageError
from common.files import checksum

from ..files import File

TRIES = 5  # of a request; of a transfer that breaks off without progress
PAUSE = 1.0  # seconds before a further try, twice as long before each one after it
BLOCK = 1 << 20


class TransferError(Exception):
    """Raised when the server cannot be reached or does not send the file; resuming later may help."""


class WrongFile(Exception):
    """Raised when an address has something else than the published file."""


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
            f"cannot download {file.name} from {address}: {error}{received}",
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
        transfer(url, partial, file)
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


def transfer(url: str, partial: Path, file: File) -> None:
    """Request the missing bytes until `partial` is complete."""
    retry = Retry(
        TRIES - 1,
        backoff_factor=PAUSE,
        status_forcelist=(429, *range(500, 600)),
        raise_on_status=False,
        respect_retry_after_header=False,  # it may be hours
    )
    with requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retry))
        stalled, most = 0, size_of(partial)
        while stalled < TRIES:
            if (most and most == file.bytes) or receive(session, url, partial, file):
                return
            stalled, most = (0, size_of(partial)) if size_of(partial) > most else (stalled + 1, most)
            print(f"{file.name}: the transfer broke off: trying again")
            time.sleep(PAUSE * 2**stalled)
    raise TransferError(f"the transfer broke off {TRIES} times without progress")


def receive(session: requests.Session, url: str, partial: Path, file: File) -> bool:
    """Send one request and append its bytes to `partial`; whether that is complete then."""
    have = size_of(partial)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = session.get(url, headers=headers, stream=True, timeout=30)
    except (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema, requests.exceptions.InvalidSchema):
        raise WrongFile("not an address of http or https") from None
    except requests.RequestException as error:
        raise TransferError(f"the connection failed ({one_line(root_cause(error))})") from error
    with response:
        start, total = validate_response(response, have, file)
        if start not in (0, have):
            partial.unlink(missing_ok=True)  # the server has another file now: begin again
            return False
        if response.status_code == 416:  # complete
            partial.touch()
            return True
        bar = tqdm(initial=start, total=total or None, unit="B", unit_scale=True, desc=file.name)
        with open(partial, "ab" if start else "wb") as out, bar:
            have = start
            try:
                for block in response.raw.stream(BLOCK, decode_content=False):
                    have += len(block)
                    if have > (total or file.max_bytes):
                        partial.unlink()
                        raise WrongFile(f"it does not end after {total or file.max_bytes:,} bytes")
                    out.write(block)
                    bar.update(len(block))
            except urllib3.exceptions.HTTPError:
                return False
    return have >= total


def validate_response(response: requests.Response, have: int, file: File) -> tuple[int, int]:
    """Check the response to a request for the bytes from `have`, before its body is read.

    Returns:
        The position of its body in the file (negative if unknown), and the size of the file (0 if unknown).
    """
    part, _, length = response.headers.get("Content-Range", "").partition("/")
    if response.status_code == 416:  # no bytes after those
        return (have, have) if length == str(have) else (-1, 0)
    status = f"{response.status_code} {response.reason}"
    if response.status_code == 429 or response.status_code >= 500:
        raise TransferError(f"the server answers {status}")
    if response.status_code not in (200, 206):
        raise WrongFile(status)
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise WrongFile("a web page instead of the file")
    start = 0
    if response.status_code == 206:
        match = re.fullmatch(r"bytes (\d+)-.*", part)
        start = int(match[1]) if match else -1
    else:
        length = response.headers.get("Content-Length", "")
    total = int(length) if length.isdigit() else file.bytes
    if total > file.max_bytes or file.bytes not in (0, total):
        raise WrongFile(f"it has {total:,} bytes there, {file.size:,} as published")
    return start, total


def root_cause(error: BaseException) -> BaseException:
    """The system's error, such as "Connection refused", which requests and urllib3 wrap several times."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error


def download_from_drive(file: File, target: Path) -> None:
    """Download from Google Drive with gdown, which resumes from a .part file of its own."""
    import gdown  # slow to import, and few files need it

    try:
        gdown.download(id=file.drive, output=str(target), resume=True)
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


def size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 200 else text[:200] + "..."
