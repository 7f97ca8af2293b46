"""Downloads over http(s) that resume and that end: no server can keep a command waiting or fill its memory or disk."""

import re
import ssl
import string
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import closing, suppress
from http.client import HTTPException, HTTPResponse, InvalidURL
from pathlib import Path
from threading import Thread
from typing import TypeVar
from urllib.parse import quote, urljoin
from urllib.request import HTTPErrorProcessor, HTTPSHandler, OpenerDirector, Request, build_opener

from .errors import one_line
from .version import __version__

TRIES, MOST_TRIES = 5, 50  # requests in a row that bring nothing new; requests in all
PAUSE = 1.0  # seconds before a further try, twice as long before each one after it
TIMEOUT = 30  # seconds without a byte
SLOWEST, WINDOW = 10_000, 120  # bytes a second, on the average of so many seconds
REDIRECTS = 10
BLOCK = 1 << 16
T = TypeVar("T")


class TransferError(Exception):
    """Raised when the server cannot be reached or does not send the file; resuming later may help."""


class WrongFile(Exception):
    """Raised when an address is invalid, or has something else than the published file."""


def transfer(url: str, partial: Path, name: str, size: int, most: int) -> None:
    """Download a file from http(s), or the rest of it.

    Args:
        url: its address.
        partial: where to write it; bytes that are there already are not downloaded again.
        name: what to call it in messages.
        size: its published size in bytes; 0 if none is published.
        most: upper bound on its size in bytes.

    Raises:
        TransferError: the tries or the time are used up; received bytes stay in `partial`.
        WrongFile: the address has another file.
        OSError: `partial` cannot be written.
    """
    download = Download(url, partial, name, size, most)
    try:
        supervise(download.run, lambda: download.received, most)
    except BaseException:
        download.given_up = True
        if not size_of(partial):
            partial.unlink(missing_ok=True)
        raise


def supervise(work: Callable[[], T], received: Callable[[], int], most: int) -> T:
    """What `work` returns. It runs in a thread of its own, which is left behind when it is too slow.

    A thread, as no time limit of sockets covers a server that sends its headers byte by byte.

    Args:
        work: the download.
        received: the number of bytes that it has received so far.
        most: how many bytes it may need.

    Raises:
        TransferError: less than SLOWEST bytes a second arrive, or all takes longer than `most` bytes at that rate.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    Thread(target=run, daemon=True).start()
    seconds = WINDOW + most / SLOWEST
    end = time.monotonic() + seconds
    while True:
        before = received()
        if wait([done], WINDOW).done:
            return done.result()
        if received() - before < SLOWEST * WINDOW:
            raise TransferError(f"it is slower than {SLOWEST:,} bytes a second")
        if time.monotonic() > end:
            raise TransferError(f"it takes longer than {seconds / 3600:.1f} hours")


class Download:
    """The requests for one file.

    Attributes:
        received: bytes that have arrived, those that were there before not included.
        given_up: set to write nothing more.
    """

    def __init__(self, url: str, partial: Path, name: str, size: int, most: int):
        self.url, self.partial, self.name, self.size, self.most = url, partial, name, size, most
        self.opener = opener()
        self.received, self.given_up = 0, False

    def run(self) -> None:
        """Request the missing bytes until `partial` is complete; see `transfer`."""
        stalled, reached = 0, size_of(self.partial)
        for _ in range(MOST_TRIES):
            if reached and reached == self.size:
                return
            fault = "the transfer broke off"
            try:
                if self.receive():
                    return
            except TransferError as error:
                fault = str(error)
            have = size_of(self.partial)
            stalled = 0 if have > reached else stalled + 1
            reached = max(have, reached)
            if stalled == TRIES or self.given_up:
                break
            print(f"{self.name}: {fault}: trying again")
            time.sleep(PAUSE * 2**stalled)
        raise TransferError(f"{fault}, and the tries are used up")

    def receive(self) -> bool:
        """Send one request and append its bytes to `partial`; whether that is complete then."""
        from tqdm import tqdm  # the rest of `common` needs only the standard library

        have = size_of(self.partial)
        with closing(self.request(have)) as response:
            start, end, total = self.validate(response, have)
            if self.given_up:
                return False
            if start not in (0, have):
                self.partial.unlink(missing_ok=True)  # the server has another file now: begin again
                return False
            if response.status == 416:  # complete
                self.partial.touch()
                return True
            with (
                open(self.partial, "ab" if start else "wb") as out,
                tqdm(initial=start, total=total or None, unit="B", unit_scale=True, desc=self.name) as bar,
            ):
                have, most = start, total or self.size or self.most
                while have != end:
                    try:
                        block = response.read1(BLOCK)
                    except (OSError, HTTPException, ValueError):
                        return False
                    if not block:
                        break
                    have += len(block)
                    self.received += len(block)
                    if have > most:
                        self.partial.unlink()
                        raise WrongFile(f"it does not end after {most:,} bytes")
                    if self.given_up:
                        return False
                    out.write(block)
                    bar.update(len(block))
        return have >= max(total or self.size, end)

    def request(self, start: int) -> HTTPResponse:
        """The response to a request for the bytes from `start`, after redirects; none of its body is read."""
        headers = {"User-Agent": f"modular-prompt-learning/{__version__}"}
        if start:
            headers["Range"] = f"bytes={start}-"
        url = address = self.url
        for _ in range(REDIRECTS):
            try:
                url = urljoin(url, address)
                if not re.match("https?://", url, re.IGNORECASE):
                    raise InvalidURL
                response = self.opener.open(Request(url, headers=headers), timeout=TIMEOUT)
            except (ValueError, InvalidURL):
                redirect = "" if address == self.url else f"it redirects to {one_line(address)}, "
                raise WrongFile(f"{redirect}not an address of http or https") from None
            except (OSError, HTTPException) as error:
                raise TransferError(f"the connection failed ({one_line(getattr(error, 'reason', error))})") from error
            address = quote(response.headers.get("Location", ""), encoding="iso-8859-1", safe=string.punctuation)
            if response.status not in (301, 302, 303, 307, 308) or not address:
                return response
            response.close()
        raise WrongFile(f"more than {REDIRECTS} redirects")

    def validate(self, response: HTTPResponse, have: int) -> tuple[int, int, int]:
        """Check the response to a request for the bytes from `have`, before its body is read.

        Returns:
            Where its body begins and ends in the file (negative if unknown), and the size of the file (0 if unknown).
        """
        content_range = response.headers.get("Content-Range", "")
        if response.status == 416:  # no bytes after those
            return have if content_range == f"bytes */{have}" else -1, have, 0
        status = one_line(f"{response.status} {response.reason}")
        if response.status == 429 or response.status >= 500:
            raise TransferError(f"the server answers {status}")
        if response.status not in (200, 206):
            raise WrongFile(status)
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise WrongFile("a web page instead of the file")
        length = number(response.headers.get("Content-Length", ""), -1)
        start, total = 0, max(length, 0)
        if response.status == 206:
            match = re.fullmatch("bytes ([^-]+)-[^/]+/(.+)", content_range)
            start = number(match[1], -1) if match else -1
            total = number(match[2], 0) if match and start >= 0 else 0
        if total > self.most or (total and self.size not in (0, total)):
            expected = f"{self.size:,} as published" if self.size else f"at most {self.most:,} are expected"
            raise WrongFile(f"it has {total:,} bytes there, {expected}")
        return start, start + length if length >= 0 else -1, total


class AnyStatus(HTTPErrorProcessor):
    """Returns every response. urllib, as requests does, would read the body of a redirect, however long it is."""

    def http_response(self, request, response):
        return response

    https_response = http_response


def opener() -> OpenerDirector:
    """urllib's opener, with its proxies, that trusts certificates of the system and of certifi."""
    context = ssl.create_default_context()
    with suppress(ImportError):
        import certifi  # where the system has no certificates

        context.load_verify_locations(certifi.where())
    return build_opener(AnyStatus, HTTPSHandler(context=context))


def number(text: str, otherwise: int) -> int:
    """A number of bytes in a header, where anything can be."""
    return int(text) if re.fullmatch("[0-9]{1,15}", text) else otherwise


def size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
