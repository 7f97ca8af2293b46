"""Reads files of torch.save as tensors and plain values. Nothing that a file names is imported, called or run.

torch's weights-only unpickler runs nothing either, but it has no limits: the hash of a key of nested tuples may never
end, `bytearray` takes any memory, and a tensor may be larger than its data.
"""

import hashlib
import io
import os
import pickle
import zipfile
from collections import Counter, OrderedDict

import torch

from .files import sha256_of

# Bytes of a pickle, or of an archive's list of members. The pickle of the largest CLIP with the state of Adam has
# 0.36 MB, and that of 50,000 class names 1.6 MB.
MAX_READ = 1 << 21
MAX_COPIES = 10_000  # entries of all dictionaries that it copies: of counters, which schedulers have
MAX_NUMBERED = 10_000  # entries under numbers, which can be chosen so that finding each takes a walk past all others
MAX_DIMENSIONS = 16  # of a tensor
MAX_VALUES = MAX_READ  # and letters, counted as often as they occur
MAX_REPEATS = 4  # times the size of the file, in tensors that occur several times
SEAL, SEAL_DIGITS = b"sha256:", 64

# PROTO MARK STOP, constants, numbers, text, tuples, lists, dictionaries, the memo, GLOBAL BINPERSID: what torch writes,
# except the operations that `TensorUnpickler` defines itself.
OPERATIONS = b"\x80(.N\x88\x89GJKM\x8aXU)t\x85\x86\x87]ae}hjqrcQ"
TYPES = {
    torch.float64: "Double", torch.float32: "Float", torch.float16: "Half", torch.bfloat16: "BFloat16",
    torch.int64: "Long", torch.int32: "Int", torch.int16: "Short", torch.int8: "Char", torch.uint8: "Byte",
    torch.bool: "Bool",
}  # fmt: skip
STORAGES = {f"torch.{kind}Storage": dtype for dtype, kind in TYPES.items()}
TENSORS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
WRAPPERS = ("torch._utils._rebuild_parameter", "torch.Size", "torch.device")  # their first argument is loaded
DICTS = {"collections.OrderedDict": OrderedDict, "collections.Counter": Counter, "collections.defaultdict": dict}
OBJECTS = ("torch.optim.", "dassl.optim.")  # the published Dassl pickles schedulers, which refer to the optimiser


class DamagedError(ValueError):
    """Raised for a file that is not what torch.save writes. The message is the reason."""


class PickledObject:
    """Replaces a pickled optimiser or scheduler: has its attributes and no behaviour."""


class Name(str):
    """The name of a class or function, never the thing itself."""


class TensorUnpickler(pickle._Unpickler):
    """Reads a pickle of torch.save.

    It is Python's unpickler in Python, with the operations that torch writes, and with its own form of those that would
    call something or compute the hash of any object. `storage(key, dtype, count)` returns the numbers of a storage, a
    tensor with one dimension.

    Raises:
        DamagedError: torch.save does not write such a pickle of tensors and plain values.
        Exception: of many kinds, for what is not a pickle.
    """

    dispatch = {operation: pickle._Unpickler.dispatch[operation] for operation in OPERATIONS}

    def __init__(self, file, storage):
        super().__init__(file)
        self.storage, self.copies_left, self.numbered_left = storage, MAX_COPIES, MAX_NUMBERED

    def find_class(self, module, name):
        return Name(f"{module}.{name}".replace("__builtin__.", "builtins."))  # its name in Python 2

    def persistent_load(self, pid):
        kind, dtype, key, _, count, *view = pid
        known = kind == "storage" and type(dtype) is Name and type(key) is str and type(count) is int
        if not known or dtype not in STORAGES or view not in ([], [None]):
            raise DamagedError("it describes the numbers of a tensor in an unknown way")
        return self.storage(key, STORAGES[dtype], count)

    def load_call(self):
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not Name:
            raise DamagedError("it calls something that is not a function")
        if function in TENSORS:
            numbers, offset, size, stride = arguments[:4]
            if len(size) > MAX_DIMENSIONS:
                raise DamagedError("it contains a tensor of too many dimensions")
            tensor = numbers.as_strided(size, stride, offset)  # which checks that it is inside its storage
            if tensor.numel() > len(numbers):
                raise DamagedError("it contains a tensor that is larger than its data")
            self.append(tensor)
        elif function in WRAPPERS:
            self.append(arguments[0])
        elif function in DICTS:
            (content,) = arguments or ({},)
            content = {} if type(content) is Name else content  # the factory of a defaultdict
            self.copies_left -= len(content)
            if type(content) is not dict or self.copies_left < 0:
                raise DamagedError("it makes a dictionary in an unknown way")
            self.append(DICTS[function](content))
        elif function.startswith(OBJECTS):
            self.append(PickledObject())
        else:
            name = "".join(letter if letter.isprintable() else "?" for letter in function[:80])
            raise DamagedError(f"it contains {name}, which is neither a tensor nor a plain value, and is not loaded")

    def load_build(self):
        state, target = self.stack.pop(), self.stack[-1]
        # The versions of a state dict's modules are the only attribute of a dictionary that torch writes.
        versions = type(target) is OrderedDict and type(state) is dict and state.keys() <= {"_metadata"}
        if type(target) is PickledObject:
            target.__dict__ = state  # without a copy: a file can ask for many
        elif versions:
            vars(target).update(state)
        else:
            raise DamagedError("it contains a dictionary or a tensor with attributes")

    def load_setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def load_setitems(self):
        self.set_items(self.pop_mark())

    def set_items(self, items):
        if not isinstance(self.stack[-1], dict):
            raise DamagedError("it sets an item of something that is not a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Numbers beyond 64 bits can all have the same hash, which makes a dictionary slow.
            if type(key) not in (str, torch.Tensor) and not (type(key) is int and abs(key) < 2**63):
                raise DamagedError("it contains a dictionary with a key that is neither text nor a small number")
            self.numbered_left -= type(key) is int
            if self.numbered_left < 0:
                raise DamagedError("its dictionaries have too many numbers as keys")
            self.stack[-1][key] = value

    dispatch[pickle.REDUCE[0]] = dispatch[pickle.NEWOBJ[0]] = load_call
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.SETITEM[0]], dispatch[pickle.SETITEMS[0]] = load_setitem, load_setitems


class BoundedFile(io.BufferedReader):
    """A file that zipfile reads in pieces of at most `limit` bytes: it reads the list of members in one piece."""

    limit = MAX_READ

    def read(self, size=-1, /):
        if self.limit and (size or 0) > self.limit:
            raise DamagedError("its list of members is too long")
        return super().read(size)


def sealed(archive):
    """The bytes that `torch.save` wrote, a zip archive, with their SHA-256 as its comment, which other readers skip.

    The CRCs of an archive do not cover its list of members. The seal covers every bit.
    """
    # The last two bytes of an archive are the length of its comment.
    content = archive[:-2] + (len(SEAL) + SEAL_DIGITS).to_bytes(2, "little") + SEAL
    return content + hashlib.sha256(content).hexdigest().encode()


def read_torch_file(path):
    """The content of a file of torch.save, on the CPU. Its seal is verified or, without one, the CRCs of its members.

    Raises DamagedError if it has something other than tensors and plain values, nearly any Exception if it is damaged.
    """
    with BoundedFile(io.FileIO(path)) as file:
        if file.peek(2)[:2] != b"PK":
            raise DamagedError("it is not an archive of torch 1.6 or later")
        size = file.seek(0, os.SEEK_END)
        with zipfile.ZipFile(file) as archive:
            seal = SEAL + sha256_of(file, size - SEAL_DIGITS).hexdigest().encode() if archive.comment else b""
            if archive.comment != seal:
                raise DamagedError("its content differs from its SHA-256")
            members = archive.infolist()
            # torch compresses nothing: a small file cannot fill the memory.
            if any(member.compress_type for member in members) or sum(member.file_size for member in members) > size:
                raise DamagedError("it is compressed")
            file.limit = None
            if not seal and (damaged := archive.testzip()):
                raise DamagedError(f"the CRC of {damaged} differs")
            content = _read_archive(archive)
    check_repeats(content, MAX_REPEATS * size)
    return content


def check_repeats(content, nbytes):
    """Raise DamagedError for parts that occur so often, or in themselves, that a walk over all would not end.

    `nbytes` is the limit on the size of all tensors. Replaced objects are left out: schedulers share optimisers.
    """
    totals = {}  # id of a container: its values and letters, and bytes of its tensors; None until its parts are counted

    def total(part):
        if isinstance(part, torch.Tensor):
            return 1, part.nbytes
        return (len(part), 0) if isinstance(part, str) else totals.get(id(part), (1, 0))

    waiting, endless = [(content, False)], False
    while waiting and not endless:
        value, parts_are_known = waiting.pop()
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        if parts_are_known:
            counted = [total(part) for part in parts]
            values, size = 1 + sum(number for number, _ in counted), sum(size for _, size in counted)
            totals[id(value)], endless = (values, size), values > MAX_VALUES or size > nbytes
        elif isinstance(value, (list, tuple, dict)):
            endless = totals.get(id(value), 0) is None  # it is in itself
            if id(value) not in totals:
                totals[id(value)] = None
                waiting += [(value, True), *((part, False) for part in parts)]
    if endless:
        raise DamagedError("it repeats its parts too often")


def _read_archive(archive):
    members = {member.filename.partition("/")[2]: member for member in archive.infolist()}
    if len(members) < len(archive.infolist()):
        raise DamagedError("two members have the same name")
    if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
        raise DamagedError("its numbers are not little-endian")
    if members["data.pkl"].file_size > MAX_READ:
        raise DamagedError(f"its pickle has more than {MAX_READ} bytes")
    storages = {}

    def storage(key, dtype, count):
        if key not in storages:
            content = bytearray(archive.read(members[f"data/{key}"]))
            storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        if (storages[key].dtype, len(storages[key])) != (dtype, count):
            raise DamagedError("a storage has another size than its tensors say")
        return storages[key]

    return TensorUnpickler(io.BytesIO(archive.read(members["data.pkl"])), storage).load()
