"""Reads the pickles of torch.save and torch.jit.save as plain values: nothing that they name is imported or called."""

import math
import pickletools
from collections.abc import Iterator
from pickle import UnpicklingError
from typing import Any, BinaryIO, NamedTuple

import torch

MAX_OPERATIONS = 500_000  # a second; the largest CLIP with the state of its optimiser has 124,000

STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
TENSORS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
# Their result is their first argument, as far as it matters here.
WRAPPERS = {
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.Size",
    "torch.device",
    "collections.Counter",
    "torch.jit._pickle.restore_type_tag",
    *(f"torch.jit._pickle.build_{kind}list" for kind in ("int", "double", "bool", "tensor")),
}
KNOWN = {*STORAGES, *TENSORS, *WRAPPERS, "collections.OrderedDict"}
KNOWN |= {str(value) for value in vars(torch).values() if isinstance(value, torch.dtype)}
TORCHSCRIPT = "__torch__."  # before the name of every class of a TorchScript archive


class Name(str):
    """The name of a class or function, never the thing itself."""


class Module:
    """An object of a TorchScript class: its attributes, without its class."""

    def __init__(self, name: Name):
        self.name = name
        self.attributes: dict = {}


class Storage(NamedTuple):
    """The elements of one or more tensors; `key` is the name of their file in the archive."""

    dtype: torch.dtype
    key: str
    length: int


class StoredTensor(NamedTuple):
    """A tensor that is not read yet. It fits in its storage, and has no more elements than that."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.size) * self.storage.dtype.itemsize


def operations(file: BinaryIO) -> Iterator[tuple[str, Any]]:
    """(name, argument) of each opcode of one pickle.

    Raises:
        ValueError: it is not a pickle of protocol 2, or has more than `MAX_OPERATIONS`.
    """
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count == MAX_OPERATIONS:
            raise ValueError(f"its pickle has more than {MAX_OPERATIONS} operations")
        if opcode.name == "PROTO" and argument != 2:
            raise ValueError(f"its pickle has protocol {argument}, and torch writes 2")
        yield opcode.name, argument


def unpickle(file: BinaryIO) -> Any:
    """The content of a pickle: plain values, lists, tuples, dictionaries, `StoredTensor` and `Module`.

    Raises:
        UnpicklingError: it needs a class or a function of another kind.
        Exception: of many kinds, for what is not a pickle of torch.
    """
    stack: list[Any] = []
    outer: list[list] = []  # the stacks below the marks
    memo: dict[int, Any] = {}
    for name, argument in operations(file):
        match name:
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "BINUNICODE" | "SHORT_BINSTRING" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
                stack.append({"EMPTY_TUPLE": (), "EMPTY_LIST": [], "EMPTY_DICT": {}}[name])
            case "GLOBAL":
                stack.append(known(argument))
            case "MARK":
                outer.append(stack)
                stack = []
            case "TUPLE" | "APPENDS" | "SETITEMS":
                items, stack = stack, outer.pop()
                put(stack, name, items)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND" | "SETITEM":
                count = 1 if name == "APPEND" else 2
                items = stack[-count:]
                del stack[-count:]
                put(stack, f"{name}S", items)
            case "BINPERSID":
                stack.append(storage(stack.pop()))
            case "NEWOBJ" | "REDUCE":
                arguments = stack.pop()
                stack.append(make(stack.pop(), arguments))
            case "BUILD":
                build(stack.pop(), stack[-1])
            case "STOP":
                return stack.pop()
            case "PROTO":
                pass
            case _:
                raise ValueError(f"torch does not write the operation {name}")
    raise ValueError("its pickle has no end")


def put(stack: list, name: str, items: list) -> None:
    """Push items as a tuple, or add them to the list or dictionary on top."""
    if name == "TUPLE":
        stack.append(tuple(items))
    elif name == "APPENDS" and type(stack[-1]) is list:
        stack[-1].extend(items)
    elif name == "SETITEMS" and type(stack[-1]) is dict:
        keys = items[::2]
        if not all(type(key) is str or (type(key) is int and abs(key) < 2**63) for key in keys):
            raise ValueError("a key of a dictionary is neither text nor a small number")
        stack[-1].update(zip(keys, items[1::2], strict=True))
    else:
        raise ValueError("items without a list or a dictionary")


def known(argument: str) -> Name:
    """The name of a class or function that these files may use: "module name" of the operation GLOBAL, with a dot."""
    name = argument.replace(" ", ".")
    if name not in KNOWN and not name.startswith(TORCHSCRIPT):
        raise UnpicklingError(f"it names {name[:80]!r}")
    return Name(name)


def make(function: Any, arguments: Any) -> Any:
    """The result that a call of `function` would have."""
    if type(function) is not Name or type(arguments) is not tuple:
        raise ValueError("a call of something that is not a function")
    if function in TENSORS:
        return tensor(*arguments[:4])
    if function in WRAPPERS:
        return arguments[0]
    if function == "collections.OrderedDict" and not arguments:
        return {}
    if function.startswith(TORCHSCRIPT):
        return Module(function)
    raise UnpicklingError(f"it calls {function!r}")


def build(state: Any, target: Any) -> None:
    """Give a module its attributes. Those of a dictionary, such as the versions in a state dict, have no use here."""
    if type(target) is Module and type(state) is dict:
        target.attributes = state
    elif type(target) is Module:
        raise UnpicklingError(f"{target.name[:80]!r} needs code of its own, which is not run")
    elif type(target) is not dict:
        raise ValueError("attributes of something without attributes")


def storage(identity: Any) -> Storage:
    kind, dtype, key, _, count = identity
    if kind != "storage" or type(key) is not str or type(count) is not int or count < 0:
        raise ValueError("a storage is described in another way than torch does it")
    return Storage(STORAGES[dtype], key, count)


def tensor(data: Any, offset: Any, size: Any, stride: Any) -> StoredTensor:
    numbers = (offset, *size, *stride)
    known_kinds = type(data) is Storage and len(size) <= 8 and all(type(number) is int for number in numbers)
    if not known_kinds or min(numbers) < 0:
        raise ValueError("a tensor is described in another way than torch does it")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if max((math.prod(size), *size)) > data.length or (0 not in size and last >= data.length):
        raise ValueError(f"a tensor of shape {tuple(size)} does not fit in its {data.length} numbers")
    return StoredTensor(data, offset, tuple(size), tuple(stride))
