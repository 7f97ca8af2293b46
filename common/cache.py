"""Arrays that are kept on disk for other runs, in files with a checksum, and a limit on the size of
all: single ones (`DiskCache`), or rows of a table, each under a key of its own (`Table`).
"""

import hashlib
import mmap
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UsageError
from .files import write_bytes

DIGEST = hashlib.sha256().digest_size  # bytes
ABANDONED = 24 * 3600  # seconds after which nobody writes to an unfinished file any more
# Of a folder and a kind: bytes that may be written before the files are counted again
room_left: dict[tuple[Path, str], float] = {}


@dataclass(frozen=True)
class DiskCache:
    """The files of one kind in a folder. Several processes and threads may use them.

    A file has the bytes of an array, then the SHA-256 of its key, of its form (type and shape) and
    of these bytes: one that is damaged, renamed or of another form is not there.
    """

    folder: Path  # may be missing
    kind: str  # begins the names of the files
    title: str  # of the arrays, in messages
    # Of the size of all these files, in bytes: those that were not used for longest are deleted
    # first
    limit: float
    setting: str = ""  # the key of the limit, in messages

    def file(self, key: str) -> Path:
        return self.folder / f"{self.kind}-{key}.cache"

    def get(self, key: str, form: str, nbytes: int) -> mmap.mmap | None:
        """The file of a key, mapped into memory: `nbytes` of an array, then the checksum. None if
        there is none.

        Args:
            key: 32 letters, a checksum of all that the array depends on.
            form: its type and shape.
        """
        file = self.file(key)
        if not file.is_file():  # a named pipe would wait for its writer
            return None
        try:
            with open(file, "rb") as opened:
                content = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError):  # deleted meanwhile, or empty
            return None
        with suppress(OSError):  # of another user: then nobody knows that it is in use
            os.utime(file, follow_symlinks=False)
        digest = self.digest(key, form)
        digest.update(memoryview(content)[:nbytes])
        if len(content) != nbytes + DIGEST or content[nbytes:] != digest.digest():
            print(f"{file} is damaged or of another form: the {self.title} are computed again")
            return None
        return content

    def put(self, key: str, form: str, nbytes: int, parts: Iterable[Any]) -> bool:
        """Keep an array, given as the parts of its bytes. Returns whether it is kept; if it is not,
        this prints why.

        Raises:
            UsageError: as the iterable `parts` raises it.
        """
        if nbytes > self.limit:
            remedy = (
                f"raise {self.setting}" if self.setting else f"the limit is {self.limit / 1e9:g} GB"
            )
            print(f"{nbytes / 1e9:.2f} GB of {self.title} are not kept: {remedy}")
            return False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_bytes(self.file(key), self.sealed(key, form, parts))
        except UsageError:
            raise
        except (OSError, ValueError) as error:
            print(f"The {self.title} are not kept for other runs ({error})")
            return False
        place = self.folder, self.kind
        left = room_left.get(place, 0.0) - nbytes
        with suppress(OSError):  # another process deletes them too
            if left <= 0:
                left = self.make_room(self.file(key)) / 2  # other processes write, too
        room_left[place] = left
        return True

    def sealed(self, key: str, form: str, parts: Iterable[Any]) -> Iterable[Any]:
        """The parts, and their checksum."""
        digest = self.digest(key, form)
        for part in parts:
            digest.update(part)
            yield part
        yield digest.digest()

    def digest(self, key: str, form: str) -> Any:
        return hashlib.sha256(f"{self.kind} {key} {form}\n".encode())

    def make_room(self, newest: Path) -> float:
        """Delete unfinished files that were given up, and old ones until the limit is kept.

        Returns the bytes that are left below the limit.
        """
        for path in self.folder.glob(f".{self.kind}-*.partial"):
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()
        # Other files of the folder are the user's
        files = sorted(
            self.folder.glob(f"{self.kind}-{'?' * 32}.cache"), key=lambda path: path.stat().st_mtime
        )
        excess = sum(path.stat().st_size for path in files) - self.limit
        for path in files:
            if excess > 0 and path != newest:
                excess -= path.stat().st_size
                path.unlink()
        return -excess


@dataclass(frozen=True)
class Table:
    """Rows of one type on disk, each under a key of DIGEST bytes. Each call of `put` makes a file.

    Args:
        cache: of the files.
        facts: 16 letters, a checksum of all that the rows depend on besides their keys.
        row_type: a numpy type with a field `key`.
    """

    cache: DiskCache
    facts: str
    row_type: Any

    def put(self, keys: Sequence[bytes], parts: Iterable[Any]) -> None:
        """Keep rows under these keys, given as arrays of `row_type` one after another."""
        name = self.facts + hashlib.sha256(b"".join(keys)).hexdigest()[:16]
        nbytes = len(keys) * self.row_type.itemsize
        self.cache.put(name, self.form(len(keys)), nbytes, (part.tobytes() for part in parts))

    def get(self, keys: Iterable[bytes]) -> Mapping[bytes, Any]:
        """The rows that are kept under these keys; files without one are not read to the end."""
        import numpy as np

        wanted = set(keys)
        found: dict[bytes, Any] = {}
        for file in sorted(self.cache.folder.glob(f"{self.cache.kind}-{self.facts}*.cache")):
            count = (file.stat().st_size - DIGEST) // self.row_type.itemsize
            if count < 1 or wanted.isdisjoint(self.keys_in(file, count)):
                continue
            name = file.stem.removeprefix(f"{self.cache.kind}-")
            nbytes = count * self.row_type.itemsize
            content = self.cache.get(name, self.form(count), nbytes)
            if content is None:
                continue
            for row in np.frombuffer(content, self.row_type, count):
                key = row["key"].tobytes()
                if key in wanted:
                    found[key] = row
        return found

    def form(self, count: int) -> str:
        return f"{self.row_type} {count}"

    def keys_in(self, file: Path, count: int) -> list[bytes]:
        """The keys in a file of so many rows, before its own checksum is compared."""
        import numpy as np

        try:
            rows = np.memmap(file, self.row_type, "r", shape=(count,))
        except (OSError, ValueError):
            return []
        return [key.tobytes() for key in rows["key"]]
