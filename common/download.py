"""Downloads over http(s) that resume after an interruption and never grow beyond the size of their file."""

import re
import ssl
import time
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, HTTPSHandler, Request, build_opener

from .errors import one_line
from .version import __version__

TRIES = 10  # requests for a file
PAUSE = 3.0  # seconds between two of them
TIMEOUT = 30  # seconds without a byte
BLOCK = 1 << 16


class TransferError(Exception):
    """Raised when the server cannot be reached or does not send the complete file; resuming later may help."""


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
        TransferError: the tries are used up; received bytes stay in `partial`.
        WrongFile: the address has another file.
        OSError: `partial` cannot be written.
    """
    try:
        for tries_left in reversed(range(TRIES)):
            try:
                return receive(url, partial, name, size, most)
            except TransferError as error:
                if not tries_left:
                    raise
                print(f"{name}: {error}: trying again")
                time.sleep(PAUSE)
    finally:
        if partial.is_file() and not size_of(partial):
            partial.unlink()


def receive(url: str, partial: Path, name: str, size: int, most: int) -> None:
    """Send one request for the missing bytes, and append those that arrive: see `transfer`."""
    from tqdm import tqdm  # only downloads need it

    start = size_of(partial)
    response = None if start and start == size else request(url, start)
    if response is None:
        return
    with response:
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise WrongFile("a web page instead of the file")
        if response.status != 206:
            start = 0  # the server sends all of it
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            partial.unlink(missing_ok=True)
            raise TransferError("the server sends another part of the file")
        end = start + (response.length or 0)
        if end > most or (size and response.length and response.status != 206 and end != size):
            raise WrongFile(f"it has {end:,} bytes there, {size or most:,} {'as published' if size else 'at most'}")
        have = start
        with (
            open(partial, "ab" if start else "wb") as out,
            tqdm(initial=start, total=size or end or None, unit="B", unit_scale=True, desc=name) as bar,
        ):
            while block := read(response):
                have += len(block)
                if have > (size or most):
                    partial.unlink()
                    raise WrongFile(f"it does not end after {size or most:,} bytes")
                out.write(block)
                bar.update(len(block))
    if have < (size or end):
        raise TransferError("the transfer broke off")


def request(url: str, start: int) -> HTTPResponse | None:
    """The response to a request for the bytes from `start`, without its body; None if there are no more bytes."""
    import certifi  # as gdown does

    headers = {"User-Agent": f"modular-prompt-learning/{__version__}"} | ({"Range": f"bytes={start}-"} if start else {})
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())  # where the system has no certificates
    try:
        check_address(url)
        return build_opener(Redirects, HTTPSHandler(context=context)).open(Request(url, headers=headers), None, TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == 416 and start:
            return None
        again = error.code == 429 or error.code >= 500
        raise (TransferError if again else WrongFile)(one_line(f"{error.code} {error.reason}")) from None
    except (OSError, ValueError, HTTPException) as error:
        raise TransferError(f"the connection failed ({one_line(getattr(error, 'reason', error))})") from error


def read(response: HTTPResponse) -> bytes:
    try:
        return response.read1(BLOCK)
    except (OSError, ValueError, HTTPException) as error:
        raise TransferError("the transfer broke off") from error


def check_address(url: str) -> None:
    if not re.match("https?://", url, re.IGNORECASE):
        raise WrongFile(f"{one_line(url)} is not an address of http or https")


class Redirects(HTTPRedirectHandler):
    """Follows redirects to http and https. urllib would also read their bodies, however long they are."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        fp.close()
        check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
