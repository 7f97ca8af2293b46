"""Downloads that go on where they broke off and are verified before they count."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gdown
import requests
from tqdm import tqdm
from urllib3.exceptions import HTTPError

from common.errors import UsageError

from .files import File

TRIES = 5  # in a row without a byte
PAUSE = 1.0  # seconds before the second try, twice as long before each further one
BLOCK = 1 << 20


class Broken(Exception):
    """A transfer that ended early, and may be gone on with."""


class Refused(Exception):
    """What is at an address is not the file."""


def fetch(file: File, folder: Path, remedy: str, mirror: str = "") -> Path:
    """Download a file into a folder and verify it, going on with what an earlier try left in NAME.partial.

    Args:
        file: its name, address or Google Drive id, and what is published of its size and checksum.
        folder: where to; it exists.
        remedy: what to do when the file can't be had from there.
        mirror: address of a folder that has the file under its name, instead of its own address.

    Raises:
        UsageError: it can't be had, or is not the published file.
    """
    target = folder / file.name
    address = f"{mirror.rstrip('/')}/{file.dataset}/{file.name}" if mirror else file.url
    try:
        if address:
            download(address, target, file)
        else:
            download_from_drive(file, target)
    except Broken as error:
        kept = size_of(partial_of(target))
        again = "give the same command again to go on from there" if kept else "try again later"
        came = f" ({kept:,} bytes came)" if kept else ""
        raise UsageError(f"cannot get {file.name} from {address}: {error}{came}; {again}, or {remedy}") from None
    except Refused as error:
        raise UsageError(f"cannot get {file.name} from {address or file.link} ({error}): {remedy}") from None
    return target


def partial_of(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


def download(url: str, target: Path, file: File) -> None:
    """Download from http(s) to a file, by way of NAME.partial.

    Raises:
        Broken: after some tries; what came stays in NAME.partial.
        Refused: it is not the file.
    """
    partial = partial_of(target)
    resumed = size_of(partial) > 0
    failures = 0
    while True:
        before = size_of(partial)
        try:
            transfer(url, partial, file)
            break
        except Broken as error:
            failures = failures + 1 if size_of(partial) <= before else 1
            if failures == TRIES:
                raise
            print(f"{file.name}: {error}: trying again")
            time.sleep(PAUSE * 2 ** (failures - 1))
    try:
        verify(partial, file)
    except Refused:
        partial.unlink()
        if not resumed:
            raise
        print(f"{file.name} is not the published file: its beginning came earlier, so all of it is downloaded again")
        download(url, target, file)
    else:
        partial.replace(target)


def transfer(url: str, partial: Path, file: File) -> None:
    """One request: append what is not there yet."""
    have = size_of(partial)
    if have and have == file.bytes:  # killed before it was verified
        return
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with network_errors(), requests.get(url, headers=headers, stream=True, timeout=30) as reply:
        if reply.status_code == 416:  # there is nothing after what we have
            total = reply.headers.get("Content-Range", "").rpartition("/")[2]
            if total != str(have):
                partial.unlink()
                raise Broken("it is shorter there than what was downloaded of it")
            return
        if reply.status_code == 429 or reply.status_code >= 500:
            raise Broken(f"the server answers {reply.status_code} {reply.reason}")
        if reply.status_code not in (200, 206):
            raise Refused(f"{reply.status_code} {reply.reason}")
        if reply.headers.get("Content-Type", "").startswith("text/html"):
            raise Refused("a web page instead of the file")
        if reply.status_code == 206:
            part, _, length = reply.headers.get("Content-Range", "").partition("/")
            if not part.startswith(f"bytes {have}-"):
                partial.unlink(missing_ok=True)
                raise Broken("the server sends another part than was asked for")
        else:
            have, length = 0, reply.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else file.bytes
        if total > file.limit or file.bytes not in (0, total):
            raise Refused(f"it has {total:,} bytes there, {file.size:,} as published")
        bar = tqdm(initial=have, total=total or None, unit="B", unit_scale=True, desc=file.name)
        with open(partial, "ab" if have else "wb") as out, bar:
            for block in reply.raw.stream(BLOCK, decode_content=False):
                have += len(block)
                if have > (total or file.limit):
                    partial.unlink()
                    raise Refused(f"it does not end after {total or file.limit:,} bytes")
                out.write(block)
                bar.update(len(block))
        if have < total:
            raise Broken(f"the transfer ended after {have:,} of {total:,} bytes")


@contextmanager
def network_errors() -> Iterator[None]:
    try:
        yield
    except (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema, requests.exceptions.InvalidSchema):
        raise Refused("no such kind of address") from None
    except (requests.RequestException, HTTPError) as error:
        raise Broken(f"the transfer failed ({short(error)})") from None


def download_from_drive(file: File, target: Path) -> None:
    """Likewise from Google Drive by gdown, which keeps what came in a .part file of its own."""
    try:
        gdown.download(id=file.drive, output=str(target), resume=True)
    except Exception as error:  # its exceptions changed with its versions
        raise Refused(short(error)) from None
    if not target.is_file():
        raise Refused("gdown got nothing")
    try:
        verify(target, file)
    except Refused:
        target.unlink()
        raise


def verify(path: Path, file: File) -> None:
    """Raise Refused unless a file can be the published one by its kind, its size and its checksum."""
    with open(path, "rb") as content:
        head = content.read(200).lstrip().lower()
    if head.startswith((b"<!doctype", b"<html")):
        raise Refused("a web page instead of the file")
    size = size_of(path)
    if file.bytes and size != file.bytes:
        raise Refused(f"it has {size:,} bytes, {file.bytes:,} as published")
    if file.checksum:
        kind, expected = file.checksum
        if digest(path, kind) != expected:
            raise Refused(f"its {kind} is wrong")


def digest(path: Path, kind: str) -> str:
    """The md5 or sha256 of a file, in hexadecimal."""
    checksum = hashlib.new(kind, usedforsecurity=False)
    size = size_of(path)
    with open(path, "rb") as content, tqdm(total=size, unit="B", unit_scale=True, desc=f"{kind} of {path.name}") as bar:
        while block := content.read(BLOCK):
            checksum.update(block)
            bar.update(len(block))
    return checksum.hexdigest()


def size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def short(error: Exception) -> str:
    """An error's text in one line, without the addresses of objects and what libraries wrap around it."""
    text = " ".join(str(error).split()) or type(error).__name__
    for cause, words in {
        "NameResolutionError": "no such host, or no network",
        "Connection refused": "the server refuses connections",
        "timed out": "the server does not answer",
        "Too many users": "too many people have downloaded it today: try again tomorrow",
        "Cannot retrieve the public link": "too many downloads today, or no permission",
    }.items():
        if cause in text:
            return words
    return text if len(text) < 200 else text[:200] + "..."
