"""Reads the zip archives of torch.save and torch.jit.save. No code in them is run, and every size is checked first."""

import io
import zipfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from .pickles import Module, Storage, StoredTensor, unpickle

BLOCK = 1 << 16  # bytes: so few numbers torch converts and adds in one thread, without waiting for others
MAX_READ = 1 << 24  # bytes of a pickle or of a zip file's list of members: forty times those of the largest CLIP
MAX_TENSORS = 4000  # three times those of the largest CLIP
MAX_NAME = 1000


class WeightFile(io.BufferedReader):
    """A file of which `read` gives at most `MAX_READ` bytes at once. Tensors are read by `readinto`."""

    def __init__(self, path: Path):
        super().__init__(io.FileIO(path))
        self.nbytes = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        if (size or 0) > MAX_READ:  # zipfile reads the list of members in one piece
            raise zipfile.BadZipFile(f"its list of members has {size} bytes")
        return super().read(size)


class Member(NamedTuple):
    """Where a member's bytes are in the file, and their CRC-32."""

    start: int
    nbytes: int
    crc: int
    stored: bool  # neither compressed nor encrypted


class Archive:
    """The members of an archive by their names, without the folder that all of them are in.

    Raises:
        BadZipFile: it is not an archive of torch, its members overlap or repeat a name, or it is big-endian.
    """

    def __init__(self, file: WeightFile):
        self.file = file
        self.storages: dict[str, Tensor] = {}
        infos = sorted(zipfile.ZipFile(file).infolist(), key=lambda info: info.header_offset)
        self.members: dict[str, Member] = {}
        folder, end = infos[0].filename.partition("/")[0] if infos else "", 0
        for info in infos:
            member = locate(file, info)
            name = info.filename.removeprefix(f"{folder}/")
            if info.header_offset < end or member.start + info.compress_size > file.nbytes:
                raise zipfile.BadZipFile(f"member {name[:80]!r} overlaps another one or the end of the file")
            if name in self.members:
                raise zipfile.BadZipFile(f"two members are named {name[:80]!r}")
            self.members[name], end = member, member.start + info.compress_size
        if "byteorder" in self.members and self.read("byteorder") != b"little":
            raise zipfile.BadZipFile("its numbers are not little-endian")

    def blocks(self, name: str) -> Iterator[Tensor]:
        """The bytes of a member in blocks, which share their memory; the caller is done with one before the next.

        Raises:
            BadZipFile: it is missing or compressed, or at the end: its CRC-32 is wrong.
        """
        member = self.members.get(name)
        if member is None or not member.stored:
            raise zipfile.BadZipFile(f"member {name[:80]!r} is {'compressed' if member else 'missing'}")
        memory, crc = torch.empty(min(member.nbytes, BLOCK), dtype=torch.uint8), 0
        self.file.seek(member.start)
        for start in range(0, member.nbytes, BLOCK):
            block = memory[: member.nbytes - start]
            if self.file.readinto(block.numpy().data) < len(block):
                raise zipfile.BadZipFile(f"member {name[:80]!r} is cut off")
            crc = zlib.crc32(block.numpy().data, crc)
            yield block
        if member.crc and crc != member.crc:  # an option of torch writes 0 instead
            raise zipfile.BadZipFile(f"member {name[:80]!r} is damaged: its CRC-32 is wrong")

    def read(self, name: str) -> bytes:
        return b"".join(block.numpy().tobytes() for block in self.blocks(name))

    def value(self) -> Any:
        """The content of `data.pkl`; of a TorchScript module, its tensors by their names in a state dict."""
        if "data.pkl" in self.members and self.members["data.pkl"].nbytes > MAX_READ:
            raise zipfile.BadZipFile("its data.pkl is too large")
        value = unpickled(self.read("data.pkl"))
        return tensors_of(value) if isinstance(value, Module) else value

    def tensor(self, stored: StoredTensor, shared: bool, dtype: torch.dtype | None = None) -> Tensor:
        """Read a tensor. It is contiguous and shares no memory with another one.

        Args:
            stored: what `value` has in its place.
            shared: whether its storage has other tensors as well, and so is kept in memory.
            dtype: type of the result, by default its own.

        Raises:
            BadZipFile: its bytes are missing, damaged, or not as many as it has numbers.
            ValueError: `dtype` is for integers and its own is not, or the other way round.
        """
        key, dtype = stored.storage.key, converted(stored.storage.dtype, dtype)
        content = self.storages.get(key)
        if content is None:
            content = self.storage(stored.storage, None if shared else dtype)
        if shared:
            self.storages[key] = content
        tensor = content.as_strided(stored.size, stored.stride, stored.offset)
        owned = not shared and tensor.is_contiguous() and tensor.numel() == content.numel()
        return tensor if owned else tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)

    def storage(self, storage: Storage, dtype: torch.dtype | None) -> Tensor:
        name = f"data/{storage.key}"
        nbytes, itemsize = self.members[name].nbytes if name in self.members else 0, storage.dtype.itemsize
        if nbytes != storage.length * itemsize:
            raise zipfile.BadZipFile(f"member {name[:80]!r} has {nbytes} bytes for {storage.length} numbers")
        content = torch.empty(storage.length, dtype=dtype or storage.dtype)
        for index, block in enumerate(self.blocks(name)):
            start = index * BLOCK // itemsize
            content[start : start + len(block) // itemsize] = block.view(storage.dtype)
        return content


@lru_cache(maxsize=2)
def unpickled(content: bytes) -> Any:
    """`unpickle`, once for a file whose shapes are read before its tensors. Nobody changes the result."""
    return unpickle(io.BytesIO(content))


def converted(own: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    """The type that a tensor gets.

    Raises:
        ValueError: the wanted one is for integers and its own is not, or the other way round.
    """
    if wanted and own.is_floating_point != wanted.is_floating_point:
        raise ValueError(f"a tensor has the type {own}, not {wanted}")
    return wanted or own


def locate(file: BinaryIO, info: zipfile.ZipInfo) -> Member:
    """Where the content of a member begins: behind a header whose length only the header itself has."""
    if info.header_offset < 0:
        raise zipfile.BadZipFile("a member begins before the file")
    file.seek(info.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\3\4":
        raise zipfile.BadZipFile(f"member {info.filename[:80]!r} has no header")
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    stored = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
    return Member(info.header_offset + 30 + lengths, info.file_size, info.CRC, stored and not info.flag_bits & 1)


def tensors_of(root: Module) -> dict[str, StoredTensor]:
    """The tensors of a TorchScript module and of the modules in it, by their names in a state dict."""
    found: dict[str, StoredTensor] = {}
    waiting, seen = [("", root)], 0
    while waiting:
        prefix, module = waiting.pop()
        seen += 1
        for attribute, value in module.attributes.items():
            name = f"{prefix}{attribute}"
            if isinstance(value, StoredTensor):
                found[name] = value
            elif isinstance(value, Module):
                waiting.append((f"{name}.", value))
            if len(name) > MAX_NAME or max(seen + len(waiting), len(found)) > MAX_TENSORS:
                raise ValueError("its modules contain themselves, or are too many")
    return found
