"""Text and JSON files from anyone, read within bounds: no file can hang a command or fill its
memory.
"""

import io
import json
import os
import stat
from typing import Any, NoReturn

from .errors import MissingFileError, UsageError

MAX_BYTES = 1 << 24  # of a text: lists of names have some kilobytes
MAX_JSON = 1 << 28  # of a JSON file: the split of a dataset of two million images
# Of the characters , : [ { in it, which bound its values and so the memory that it takes
MAX_MARKS = 10_000_000


def read_bytes(path: str | os.PathLike, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes; errors are those of `read_text`."""
    content = b""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            regular = stat.S_ISREG(status.st_mode)
            size = min(max(status.st_size, 1 << 16), most) + 1  # some file systems report no size
            while regular and len(content) <= most and (block := os.read(descriptor, size)):
                content += block
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        kind = MissingFileError if isinstance(error, FileNotFoundError) else UsageError
        reason = getattr(error, "strerror", None) or error
        raise kind(f"cannot read {path} ({reason})", "check the path", path) from error
    if not regular:
        raise UsageError(
            f"{path} is not a regular file", "give the path of a file with content", path
        )
    if len(content) > most:
        raise UsageError(f"{path} is larger than {most:,} bytes", "shorten it", path)
    return content


def read_text(path: str | os.PathLike, most: int = MAX_BYTES, errors: str = "strict") -> str:
    """The text of a regular file of at most `most` bytes. It never waits, as opening a named pipe
    would.

    The file is UTF-8 with or without a byte order mark; `errors` is that of `bytes.decode`. Raises
    UsageError if it is missing (MissingFileError), larger, not a regular file or not UTF-8.
    """
    try:
        return read_bytes(path, most).decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text", "fix or replace it", path) from error


def lines_of(text: str) -> list[str]:
    """The lines of a text that are not empty, without the space around them.

    They end where an editor ends them: `str.splitlines` also cuts a name at letters such as U+2028.
    """
    return [line for line in map(str.strip, io.StringIO(text, newline=None)) if line]


def read_json(path: str | os.PathLike, most: int = MAX_JSON) -> Any:
    """The content of a JSON file of at most `most` bytes. Raises UsageError if it cannot be read,
    is not JSON, has too many values or levels, or a key twice."""
    text = read_text(path, most)
    if sum(map(text.count, ",:[{")) > MAX_MARKS:
        raise UsageError(f"{path} has too many values", "shorten it", path)
    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON ({error})", "fix or replace it", path) from error


def refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key is there twice")
    return content
