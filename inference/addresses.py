"""Images in storage of other machines, by addresses such as s3://bucket/a.jpg.

Commands read them; the page and the API never do. Nothing asks a web server, which anybody's list
could name.
"""

import logging
import re
from argparse import ArgumentTypeError
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from common.errors import UsageError, one_line
from common.image_files import is_image
from common.start import path
from common.text import read_bytes

from .tars import MAX_BYTES, Member

WEB = "http", "https"
KNOWN = "s3", "gs", "gcs", "abfs", "az", "hdfs", "file", "memory"
# In the names of errors of libraries that cannot reach a storage
UNREACHABLE = "Connection", "Timeout", "Credential"


class UnreachableError(UsageError):
    """Raised if no image of a storage can be read: it is not there, or its library."""


@dataclass(frozen=True)
class Address:
    """Where an image is; or, with a slash at its end, a folder of images."""

    url: str
    suffix: ClassVar[str] = ""  # neither a list nor a tar

    def __str__(self) -> str:
        return self.url

    def exists(self) -> bool:
        """Whether there may be something: reading it says so."""
        return True

    def is_dir(self) -> bool:
        return False

    def images(self) -> Iterator["Address"]:
        """The image, or the images in the folder and below it, sorted."""
        protocol = protocol_of(self.url)
        if not self.url.endswith("/"):
            yield self
            return
        try:
            names = filesystem(protocol).find(self.url)
        except Exception as error:  # of any library behind fsspec
            raise unreadable(self.url, error) from error
        for name in sorted(names):
            if is_image(name):
                yield Address(f"{protocol}://{name.lstrip('/') if protocol != 'file' else name}")

    def read(self) -> bytes:
        """The content of the image; UsageError if it cannot be read."""
        protocol = protocol_of(self.url)
        try:
            content = of_filesystem(self.url, protocol)
        except Exception as error:  # of any library behind fsspec
            raise unreadable(self.url, error) from error
        if len(content) > MAX_BYTES:
            raise UsageError(f"{self.url} has more than {MAX_BYTES:,} bytes", "shorten it")
        return content


Image = Path | Member | Address  # all that a command reads as an image


def source(text: str) -> Any:
    """The argparse type of a path or an address."""
    if not is_address(text):
        return path(text)
    try:
        protocol_of(text)
    except UsageError as error:
        raise ArgumentTypeError(str(error)) from error
    return Address(text)


def is_address(text: str) -> bool:
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text))


def place_of(name: str, folder: Path) -> "Path | Address":
    """The image that a list in a folder names; UsageError for one on the web."""
    if not is_address(name):
        return folder / name
    check_storage(name)
    return Address(name)


def check_storage(url: str) -> str:
    """The protocol of an address; UsageError for one on the web."""
    protocol = url.partition("://")[0].lower()
    if protocol in WEB:
        remedy = "download images from the web by img2dataset, and give its folder or its tars"
        raise UsageError(f"{one_line(url)} is not read", remedy)
    return protocol


def protocol_of(url: str) -> str:
    """The protocol of an address, for which there is a library; else UsageError."""
    protocol = check_storage(url)
    if protocol not in KNOWN:
        raise UsageError(f"{one_line(url)} is not read", f"known are {', '.join(KNOWN)}")
    filesystem(protocol)
    return protocol


@cache
def filesystem(protocol: str) -> Any:
    import fsspec

    try:
        found = fsspec.filesystem(protocol)
    except (ImportError, ValueError) as error:
        fault = f"{protocol}:// is not read ({one_line(error)})"
        remedy = "install its library, such as pip install s3fs or gcsfs"
        raise UnreachableError(fault, remedy) from error
    library = type(found).__module__.partition(".")[0]
    logging.getLogger(library).addHandler(logging.NullHandler())  # or it prints tracebacks
    return found


def of_filesystem(url: str, protocol: str) -> bytes:
    if protocol == "file":
        return read_bytes(filesystem(protocol)._strip_protocol(url), MAX_BYTES)
    with filesystem(protocol).open(url, "rb") as file:
        return file.read(MAX_BYTES + 1)


def unreadable(url: str, error: Exception) -> UsageError:
    if isinstance(error, UsageError):
        return error
    if isinstance(error, FileNotFoundError):
        return UsageError(f"there is no {url}", "check the address")
    names = " ".join(kind.__name__ for kind in type(error).__mro__)
    if any(word in names for word in UNREACHABLE):
        fault = f"the storage of {url} cannot be reached ({one_line(error)})"
        return UnreachableError(fault, "run the same command again once it can")
    return UsageError(f"cannot read {url} ({one_line(error)})", "check the address")
