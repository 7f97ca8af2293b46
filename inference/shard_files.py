"""A folder of shards, and how one shard is written."""

import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from common.errors import UsageError, one_line
from common.files import checksum, replacing
from common.start import required_packages

from .addresses import Image

if TYPE_CHECKING:
    from tqdm import tqdm

REQUIREMENTS = "requirements-parquet.txt"
ROWS = 1000  # of a Parquet file at a time
SHA256 = b"sha256"  # of the features, in the metadata of their Parquet file
DAMAGED = OSError, ValueError, KeyError, TypeError, AttributeError  # of files of anyone


class Output:
    """A folder of shards.

    Attributes:
        name: of the command; the file `_NAME.json` and the metadata of each shard state the facts.
        content: of the shards, for errors.
        errors: of the images so far.
        facts: what the content of the shards depends on, besides the images.
        first_image: its place among the paths of the command, after those of models.
    """

    name: str
    content: str
    bar: "tqdm"  # of the command that writes
    first_image = 0

    def __init__(self, folder: Path, facts: dict[str, Any]):
        self.folder = folder
        self.errors = 0
        self.facts = json.loads(json.dumps(facts))  # as they are read again

    @property
    def record(self) -> Path:
        """The file with the facts. Parquet's readers of folders ignore names with _."""
        return self.folder / f"_{self.name}.json"

    def files(self, number: int) -> list[Path]:
        """The files of a shard, in the order in which they are written."""
        return [self.folder / f"{number:05}.parquet"]

    def write(self, number: int, images: Sequence[Image], facts: bytes) -> None:
        """Write the files of a shard; the last one is Parquet with the facts in its metadata."""
        raise NotImplementedError

    def advance(self, images: int, errors: int) -> None:
        """Show that images are done, of which some have an error."""
        self.errors += errors
        self.bar.set_postfix_str(f"errors={self.errors}", refresh=False)
        self.bar.update(images)

    def skip(self, images: int, errors: int) -> None:
        """The same for a shard that was finished before, which makes this command no faster."""
        if not self.bar.disable:
            self.bar.initial += images
        self.advance(images, errors)


class Shard(NamedTuple):
    """Some files with images; or one tar or file of a bank, of which `read` gives the images."""

    files: Sequence[Any]
    read: Callable[[Path], Any] | None = None

    def images(self) -> Any:
        return self.read(self.files[0]) if self.read else self.files


def write_shard(output: Output, number: int, shard: Shard) -> None:
    """Write a shard, unless that is done and the images are the same."""
    files = output.files(number)
    for file in files:
        file.parent.mkdir(exist_ok=True)
        remove_partial(file)
    facts = output.facts | {"images": listing(shard.files)}
    is_done = all(file.is_file() for file in files)
    if is_done and facts_in(files[-1], output.name) == facts:
        try:
            output.skip(*counted(files))
            return
        except UsageError as error:
            print(f"{error}; it is written again")
    output.write(number, shard.images(), json.dumps(facts).encode())


def counted(files: Sequence[Path]) -> tuple[int, int]:
    """How many images and errors the files of a shard have; UsageError unless all of their content
    is what was written.
    """
    images = errors = 0
    with opened(files[-1]) as table:
        expected = (table.schema_arrow.metadata or {}).get(SHA256, b"").decode()
        if files[1:] and checksum(files[0]) != expected:
            raise ValueError(f"its features in {files[0].name} have another checksum")
        for part in parts_of(table):
            images += len(part)
            errors += sum(map(bool, part["error"].to_pylist()))
    return images, errors


def parts_of(table: Any, columns: Sequence[str] | None = None) -> Iterator[Any]:
    """At most ROWS rows of a Parquet file at a time; ValueError if there are more or fewer than it
    states, which has no checksum.
    """
    rows = 0
    for part in table.iter_batches(ROWS, columns=columns):
        rows += len(part)
        yield part
    if rows != table.metadata.num_rows:
        raise ValueError(f"it has {rows:,} of {table.metadata.num_rows:,} rows")


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A Parquet file, whose pages are compared with their checksums; UsageError if it is
    damaged.
    """
    with required_packages(REQUIREMENTS):
        import pyarrow
        from pyarrow.parquet import ParquetFile
    try:
        if not file.is_file():  # a pipe would wait
            raise FileNotFoundError("it is not a file")
        with ParquetFile(file, page_checksum_verification=True) as table:
            yield table
    except (*DAMAGED, pyarrow.ArrowException) as error:
        raise UsageError(f"{file} is damaged ({one_line(error)})", "", file) from error


def remove_partial(file: Path) -> None:
    """Delete what commands that were killed have left of a file."""
    for left in file.parent.glob(f".{file.name}.*.partial"):
        left.unlink(missing_ok=True)


def remove_unfinished(file: Path) -> None:
    """The same of a file that other commands may be writing now."""
    for left in file.parent.glob(f".{glob.escape(file.name)}.*.partial"):
        process = left.name.split(".")[-2].partition("-")[0]
        if process.isdecimal() and not is_alive(int(process)):
            left.unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # of another user; no number of a process
        return True
    return True


def listing(files: Sequence[Any]) -> str:
    """A SHA-256 of paths, sizes and times; of addresses alone, whose images are not asked for."""
    digest = hashlib.sha256()
    for file in files:
        try:
            status = os.stat(str(file))
            digest.update(f"{status.st_size} {status.st_mtime_ns} ".encode())
        except (OSError, ValueError):  # ValueError: NUL in the path
            digest.update(b"- ")
        digest.update(os.fsencode(str(file)) + b"\0")
    return digest.hexdigest()


def facts_in(file: Path, name: str) -> Any:
    """The facts that a Parquet file states; None if there is no such file."""
    import pyarrow
    from pyarrow import parquet

    try:
        metadata = parquet.read_schema(file).metadata or {}
        return json.loads(metadata.get(name.encode(), b"null"))
    except (OSError, ValueError, RecursionError, pyarrow.ArrowException):
        return None


def write_tables(
    file: Path, schema: Any, tables: Iterable[Any], metadata: dict[str, bytes]
) -> None:
    """Write tables of pyarrow, one after another, completely or not at all."""
    from pyarrow.parquet import ParquetWriter

    with (
        replacing(file) as unfinished,
        ParquetWriter(
            unfinished, schema.with_metadata(metadata), write_page_checksum=True
        ) as writer,
    ):
        for table in tables:
            writer.write_table(table)
