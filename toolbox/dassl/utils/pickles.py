"""Checks of the pickles in a checkpoint, before ``torch.load(weights_only=True)`` reads them."""

import math
import pickle
from _compat_pickle import IMPORT_MAPPING

MAX_PICKLE = 1 << 21  # bytes. The largest CLIP with the state of Adam has 0.36 MB; 50,000 class names have 1.6 MB.
LEGACY = 0x1950A86A20F9469CFC6C  # the first number in a file of torch.save before version 1.6

# PROTO MARK STOP, constants, numbers, text, tuples, lists, dictionaries, the memo, GLOBAL BINPERSID: what torch writes,
# but for the operations that `Checker` has in its own form.
OPERATIONS = b"\x80(.N\x88\x89GJKM\x8aXU)t\x85\x86\x87]ae}hjqrcQ"
KINDS = {1: "Bool Byte Char", 2: "Short Half BFloat16", 4: "Int Float", 8: "Long Double"}
BYTES = {f"torch.{kind}Storage": size for size, kinds in KINDS.items() for kind in kinds.split()}
TENSORS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
PARAMETER = "torch._utils._rebuild_parameter"
DICTS = ("collections.OrderedDict", "collections.defaultdict", "collections.Counter")
FACTORIES = ("builtins.dict", "builtins.list", "builtins.int")  # of a defaultdict
CALLED = (*TENSORS, PARAMETER, *DICTS, "torch.Size", "torch.device")
OBJECTS = ("torch.optim.", "dassl.optim.")  # the published Dassl pickles schedulers, which refer to the optimiser


class DamagedError(ValueError):
    """Raised for a file whose content is not what was written. The message is the reason."""


class PickledObject:
    """Replaces a pickled optimiser or scheduler: has its attributes and no behaviour."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        """Ignore the arguments in the pickle."""

    def __setstate__(self, state):
        if isinstance(state, dict):
            self.__dict__.update(state)


def _plain_dict(factory=None):
    """Replaces ``defaultdict``, which torch's weights-only unpickler cannot fill."""
    return {}


class Name(str):
    """The name of a class or function, never the thing itself."""


class Checker(pickle._Unpickler):
    """Goes through a pickle without making what it names.

    torch's weights-only unpickler runs nothing, but has no limits: the hash of a key of nested tuples can take for
    ever, `bytearray` takes any memory, and a tensor may be larger than its data, or have hooks.

    Args:
        file (io.BytesIO): with the pickle; its position is behind it afterwards.

    Attributes:
        content: what the pickle holds, with names for objects and tensors.
        storages (dict): (kind, number of numbers) by the key of a storage.
        allowed (list): what the pickle may name besides what torch allows, for ``torch.serialization.safe_globals``.

    Raises:
        DamagedError: torch should not read it.
        Exception: of many kinds, for what is not a pickle.
    """

    dispatch = {operation: pickle._Unpickler.dispatch[operation] for operation in OPERATIONS}

    def __init__(self, file):
        super().__init__(file)
        self.storages = {}
        self.allowed = [dict, list, int, (_plain_dict, "collections.defaultdict")]
        self.content = self.load()

    @property
    def nbytes(self):
        """The sizes of the storages by their keys."""
        return {key: BYTES[kind] * count for key, (kind, count) in self.storages.items()}

    def find_class(self, module, name):
        return Name(f"{IMPORT_MAPPING.get(module, module)}.{name}")  # pickles use the module names of Python 2

    def persistent_load(self, pid):
        kind, name, key, _, count, *view = pid
        known = kind == "storage" and type(name) is Name and type(key) is str and type(count) is int
        if not known or view not in ([], [None]) or self.storages.setdefault(key, (name, count)) != (name, count):
            raise DamagedError("it describes a storage in another way than torch does it")
        return count

    def load_call(self):
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not Name:
            raise DamagedError("it calls something that is not a function")
        if function.startswith(OBJECTS):
            self.allowed.append((PickledObject, str(function)))
        elif function not in CALLED:
            name = "".join(letter if letter.isprintable() else "?" for letter in function[:80])
            raise DamagedError(
                f"it contains {name}, which is neither a plain tensor nor a plain value, and is not loaded"
            )
        if function in TENSORS:
            check_tensor(*arguments)
        if function in DICTS and not all(type(value) is dict or value in FACTORIES for value in arguments):
            raise DamagedError("it makes a dictionary in another way than torch does it")
        if function == PARAMETER and any(arguments[2:]):
            raise DamagedError("it contains a tensor with behaviour of its own")
        self.append({} if function in DICTS else function)

    def load_build(self):
        state, target = self.stack.pop(), self.stack[-1]
        # The versions of a state dict's modules are the only attribute of a dictionary that torch writes.
        if type(target) is not Name and not (type(target) is type(state) is dict and state.keys() <= {"_metadata"}):
            raise DamagedError("it contains a dictionary with attributes")

    def load_setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def load_setitems(self):
        self._set_items(self.pop_mark())

    def _set_items(self, items):
        for key in items[::2]:
            tensor = type(key) is Name and key in (*TENSORS, PARAMETER)  # in the state of a pickled optimiser
            # Numbers beyond 64 bits can all have the same hash, which makes a dictionary slow.
            if not (tensor or type(key) is str or (type(key) is int and abs(key) < 2**63)):
                raise DamagedError("it contains a dictionary with a key that is neither text nor a small number")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    dispatch[pickle.REDUCE[0]] = dispatch[pickle.NEWOBJ[0]] = load_call
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.SETITEM[0]], dispatch[pickle.SETITEMS[0]] = load_setitem, load_setitems


def check_tensor(count, offset, size, stride, requires_grad=False, *behaviour):
    """Check the arguments of torch's function for a tensor in a storage of ``count`` numbers."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride)) < 0 or math.prod(size) > count or (0 not in size and last >= count):
        raise DamagedError("it contains a tensor that is larger than its data")
    if any(behaviour):
        raise DamagedError("it contains a tensor with behaviour of its own")
