"""Reads the tensors in files of torch.save and torch.jit.save. Nothing that a file names is imported, called or run."""

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

# Bytes of a pickle, or of an archive's list of members. Those of the largest CLIP with the state of Adam have 0.36 and
# 0.49 MB. The slowest pickle of this size takes two seconds and 0.2 GB.
MAX_READ = 1 << 21
MAX_NAMES = 40_000  # of tensors in TorchScript modules, in all levels: five times those of the largest CLIP
MAX_NAME = 1000  # letters
MAX_NUMBERED = 10_000  # entries under numbers, which can be chosen so that finding each takes a walk past all others
MAX_DIMENSIONS = 16  # of a tensor
BLOCK = 1 << 18  # bytes of a tensor that are read together: they stay in the processor's cache
LEGACY = 0x1950A86A20F9469CFC6C  # the first number in a file of torch.save before version 1.6

# PROTO MARK STOP, constants, numbers, text, tuples, lists, dictionaries, the memo, GLOBAL BINPERSID: what torch writes,
# except the operations that `TensorUnpickler` has in its own form.
OPERATIONS = b"\x80(.N\x88\x89GJKM\x8aXU)t\x85\x86\x87]ae}hjqrcQ"
TYPES = {
    torch.float64: "Double", torch.float32: "Float", torch.float16: "Half", torch.bfloat16: "BFloat16",
    torch.int64: "Long", torch.int32: "Int", torch.int16: "Short", torch.int8: "Char", torch.uint8: "Byte",
    torch.bool: "Bool",
}  # fmt: skip
STORAGES = {f"torch.{kind}Storage": dtype for dtype, kind in TYPES.items()}
TENSORS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
# Their result is their first argument, as far as it matters here.
WRAPPERS = "torch._utils._rebuild_parameter", "torch.jit._pickle.", "torch.Size", "torch.device", "collections.Counter"


class Name(str):
    """The name of a class or function, never the thing itself."""


class Module(dict[str, Tensor]):
    """The tensors of an object of a TorchScript class and of the objects in it, by their names in a state dict."""


class TensorUnpickler(pickle._Unpickler):
    """Reads a pickle as plain values, lists, tuples, dictionaries, tensors and `Module`.

    It is Python's unpickler in Python, with the operations that torch writes, and with its own form of those that would
    call something. (The one in C reserves memory for any number of an object in the memo, and computes the hash of any
    key: that of nested tuples may never end.)

    Args:
        file: with the pickle; its position is behind it afterwards.
        nbytes: limit on the size of all `storages`, the memory for the numbers of the tensors, to be filled.

    Raises:
        UnpicklingError: it calls a class or a function that is not one of torch's for tensors.
        Exception: of many kinds, for what is not a pickle of torch.
    """

    dispatch = {operation: pickle._Unpickler.dispatch[operation] for operation in OPERATIONS}
    stack: list
    append: Callable[[Any], None]
    pop_mark: Callable[[], list]

    def __init__(self, file: io.BytesIO, nbytes: int):
        super().__init__(file)
        self.left, self.names_left, self.numbered_left = nbytes, MAX_NAMES, MAX_NUMBERED
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Name:
        return Name(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, count, *view = pid
        known = kind == "storage" and type(dtype) is Name and type(key) is str and type(count) is int
        if not known or view not in ([], [None]):
            raise ValueError("a storage is described in another way than torch does it")
        if key not in self.storages:
            self.left -= count * STORAGES[dtype].itemsize
            if self.left < 0:
                raise ValueError("its tensors are larger than the file")
            self.storages[key] = torch.empty(count, dtype=STORAGES[dtype])
        if (self.storages[key].dtype, len(self.storages[key])) != (STORAGES[dtype], count):
            raise ValueError("two tensors describe their storage differently")
        return self.storages[key]

    def load_call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not Name or type(arguments) is not tuple:
            raise ValueError("a call of something that is not a function")
        if function in TENSORS:
            numbers, offset, size, stride = arguments[:4]
            if len(size) > MAX_DIMENSIONS:
                raise ValueError("a tensor has too many dimensions")
            self.append(numbers.as_strided(size, stride, offset))  # which checks that they are all in the storage
        elif function.startswith(WRAPPERS):
            self.append(arguments[0])
        elif function == "collections.OrderedDict" and not arguments:
            self.append({})
        elif function.startswith("__torch__."):
            self.append(Module())
        else:
            raise pickle.UnpicklingError(f"it calls {function[:80]!r}")

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is Module and type(state) is dict:
            self.name_tensors(target, state)
        elif type(target) is Module:
            raise pickle.UnpicklingError("an object in it needs code of its own, which is not run")
        elif type(target) is not dict:  # whose attributes, such as the versions in a state dict, have no use here
            raise ValueError("attributes of something without attributes")

    def name_tensors(self, target: Module, attributes: dict) -> None:
        for attribute, value in attributes.items():
            tensors = value if type(value) is Module else {"": value}
            self.names_left -= max(1, len(tensors))  # an empty module takes time, too, and attributes can be set again
            if self.names_left < 0:
                raise ValueError("its modules are too many")
            for below, tensor in tensors.items():
                name = f"{attribute}.{below}" if below else attribute
                if len(name) > MAX_NAME:
                    raise ValueError("its modules are too deep")
                if isinstance(tensor, Tensor):
                    target[name] = tensor

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def load_setitems(self) -> None:
        self.set_items(self.pop_mark())

    def set_items(self, items: list) -> None:
        # Numbers beyond 64 bits can all have the same hash, which makes a dictionary slow.
        if not all(type(key) is str or (type(key) is int and abs(key) < 2**63) for key in items[::2]):
            raise ValueError("a key of a dictionary is neither text nor a small number")
        self.numbered_left -= sum(type(key) is int for key in items[::2])
        if self.numbered_left < 0:
            raise ValueError("its dictionaries have too many numbers as keys")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    dispatch[pickle.REDUCE[0]] = dispatch[pickle.NEWOBJ[0]] = load_call  # type: ignore[assignment]
    dispatch[pickle.BUILD[0]] = load_build  # type: ignore[assignment]
    dispatch[pickle.SETITEM[0]] = load_setitem  # type: ignore[assignment]
    dispatch[pickle.SETITEMS[0]] = load_setitems  # type: ignore[assignment]


class BoundedFile(io.BufferedReader):
    """A file that is never read in a piece larger than `MAX_READ`: zipfile reads the list of members in one."""

    def __init__(self, path: Path):
        super().__init__(io.FileIO(path))
        self.nbytes = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        if (size or 0) > MAX_READ:
            raise zipfile.BadZipFile(f"its list of members has {size} bytes")
        return super().read(size)


def read(path: Path) -> Any:
    """The content of a file of torch.save; of torch.jit.save, a `Module`.

    Raises:
        Exception: nearly any, for a file that is damaged, or of another kind.
    """
    with BoundedFile(path) as file:
        return read_archive(file) if file.peek(4)[:4] == b"PK\3\4" else read_legacy(file)


def read_archive(file: BoundedFile) -> Any:
    archive = zipfile.ZipFile(file)
    names = archive.namelist()
    folder = names[0].partition("/")[0]
    outside = [name for name in names if not name.startswith(f"{folder}/") or ".." in name.split("/")]
    if outside or len(set(names)) < len(names):
        raise zipfile.BadZipFile("two members have the same name, or one is outside of its folder")
    pickled = archive.getinfo(f"{folder}/data.pkl")
    if pickled.file_size > MAX_READ:
        raise zipfile.BadZipFile("its data.pkl is too large")
    if f"{folder}/byteorder" in names and archive.open(f"{folder}/byteorder").read(9) != b"little":
        raise zipfile.BadZipFile("its numbers are not little-endian")
    unpickler = TensorUnpickler(io.BytesIO(archive.read(pickled)), file.nbytes)
    value = unpickler.load()
    for key, numbers in unpickler.storages.items():
        member = archive.getinfo(f"{folder}/data/{key}")
        if member.file_size != numbers.nbytes:
            raise zipfile.BadZipFile(f"storage {key[:80]!r} has {member.file_size} bytes for {len(numbers)} numbers")
        with archive.open(member) as content:  # which checks its CRC-32
            fill(numbers, content)
    return value


def read_legacy(file: BoundedFile) -> Any:
    """What torch.save wrote before version 1.6: five pickles, then the numbers. There is no checksum."""
    start = io.BytesIO(file.read(MAX_READ))
    unpicklers = [TensorUnpickler(start, file.nbytes) for _ in range(5)]
    magic, _, system, value, keys = (unpickler.load() for unpickler in unpicklers)
    storages = unpicklers[3].storages
    if magic != LEGACY or system["little_endian"] is not True:
        raise ValueError("torch.save did not write it, or did so on a big-endian machine")
    if not all(type(key) is str for key in keys) or set(keys) != storages.keys():
        raise ValueError("its list of storages is not that of its tensors")
    file.seek(start.tell())
    for key in keys:
        if int.from_bytes(file.read(8), "little") != len(storages[key]):
            raise ValueError(f"storage {key[:80]!r} has another size than its tensors say")
        fill(storages[key], file)
    return value


def fill(numbers: Tensor, content: IO[bytes]) -> None:
    for block in numbers.view(torch.uint8).split(BLOCK):
        read = content.read(len(block))
        if len(read) < len(block):
            raise ValueError("its numbers are cut off")
        block.numpy().data[:] = read
