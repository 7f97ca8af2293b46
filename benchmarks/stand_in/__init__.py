"""A CUDA device without a GPU: its tensors are computed on the CPU, and what a GPU would do is counted.

    from benchmarks.stand_in import stand_in  # before torch

    with stand_in() as counted:
        trainer.forward_backward(batch)  # on the device cuda:0
    print(counted.launches.total(), counted.waits)

Devices, autograd, autocast, the gradient scaler, `.item()` and copies behave as on a GPU; an operation on tensors of
two devices raises torch's error. Values are the CPU's. It shows no rounding, kernels, memory or speed of a GPU.

It needs Linux and g++, and compiles a few lines of C++ when it is imported; without g++ the program ends with status 2.
"""

import ctypes
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch


def compiled() -> ctypes.CDLL:
    """The library of device.cpp, with torch's libraries that it needs; torch must not be imported yet.

    Raises:
        ImportError: torch was imported before.
        SystemExit: there is no g++.
    """
    spec, compiler = find_spec("torch"), shutil.which("g++")
    if compiler is None:
        print("error: the stand-in device needs g++: install it (on Debian: apt install g++)", file=sys.stderr)
        sys.exit(2)
    if "torch" in sys.modules or spec is None or spec.origin is None:
        raise ImportError("the stand-in device has to be imported before torch")
    torch_folder = Path(spec.origin).parent
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(torch_folder / "lib" / name), ctypes.RTLD_GLOBAL)
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(__file__).with_name("device.cpp"), f"{folder}/device.so"
        places = [f"-I{torch_folder}/include", f"-L{torch_folder}/lib", "-lc10", "-ltorch_cpu"]
        subprocess.run([compiler, "-std=c++20", "-shared", "-fPIC", source, "-o", library, *places], check=True)
        return ctypes.CDLL(library)


LIBRARY = compiled()
LIBRARY.announce()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing  # noqa: E402
from torch.utils._pytree import tree_leaves, tree_map_only  # noqa: E402

LIBRARY.guard()

from .counted import Counted  # noqa: E402

aten = torch.ops.aten
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
COPIES = {aten.copy_.default, aten._to_copy.default, aten._foreach_copy_.default}  # between two devices
INDEXED = {aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put.default, aten.index_put_.default}
INDEXED |= {aten._index_put_impl_.default, aten._unsafe_index_put.default}  # by indices on either device
PRODUCTS = {aten.mm.default, aten.bmm.default, aten.convolution.default, aten.addmm.default, aten.baddbmm.default}
COUNTED = Counted(str(Path(__file__).resolve().parents[2]))


class OnDevice(Tensor):
    """A tensor on the device.

    Attributes:
        values: what it holds, on the CPU.
    """

    values: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: Tensor):
        how = {"strides": values.stride(), "storage_offset": values.storage_offset(), "layout": values.layout}
        return Tensor._make_wrapper_subclass(cls, values.size(), dtype=values.dtype, device=CUDA, **how)

    def __init__(self, values: Tensor):
        self.values = values

    def __repr__(self, *, tensor_contents=None) -> str:
        return f"OnDevice({self.values!r})"

    def __format__(self, form: str) -> str:
        return format(self.item(), form) if self.dim() == 0 else str(self)

    @property
    def data(self):
        return OnDevice(self.values.data)

    @data.setter
    def data(self, new):
        Tensor.data.__set__(self, new)
        self.values = new.values

    def tolist(self):
        COUNTED.wait("tolist")
        return self.values.tolist()

    def numpy(self, *, force=False):
        raise TypeError("can't convert cuda:0 device type tensor to numpy: copy it to the CPU first")

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copied = OnDevice(self.values.detach().clone())
            memo[id(self)] = torch.nn.Parameter(copied, self.requires_grad) if is_parameter(self) else copied
        return memo[id(self)]

    def __reduce_ex__(self, protocol):  # a checkpoint; `map_location` reads it as a tensor of the CPU
        values = self.values.detach().clone().requires_grad_(self.requires_grad)
        return (torch.nn.Parameter(values, self.requires_grad) if is_parameter(self) else values).__reduce_ex__(
            protocol
        )

    @classmethod
    def __torch_dispatch__(cls, operation, types, arguments=(), options=None):
        return compute(operation, arguments, options or {})


def is_parameter(tensor: Tensor) -> bool:
    return getattr(tensor, "_is_param", False)


class Dispatch(TorchDispatchMode):
    """Sends every operation of a thread through `compute`, those that make tensors on the device too."""

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        return compute(operation, arguments, options or {})


def compute(operation, arguments: tuple, options: dict):
    """The result of an operation: of the CPU if no tensor and no argument is of the device."""
    if operation is aten.is_pinned.default:
        return getattr(arguments[0], "pinned", False)
    if operation is aten._pin_memory.default:
        pinned = arguments[0].clone()
        pinned.pinned = True
        return pinned
    tensors = [leaf for leaf in tree_leaves((arguments, options)) if isinstance(leaf, Tensor)]
    here, there = ([each for each in tensors if isinstance(each, OnDevice) == on] for on in (True, False))
    asked = torch.device(options["device"]).type if options.get("device") is not None else None
    if not here and asked != "cuda":
        return operation(*arguments, **options)
    if here and there and not may_mix(operation, arguments, there):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu in {operation}")
    if operation in PRODUCTS and len(types := {tensor.dtype for tensor in tensors if tensor.is_floating_point()}) > 1:
        raise RuntimeError(f"expected tensors of the same dtype in {operation}, got {types}")
    COUNTED.operation(operation, arguments, options, here, there)
    inner = {key: value for key, value in options.items() if key not in ("non_blocking", "pin_memory")}
    inner |= {"device": CPU} if asked else {}
    inner_arguments, inner = tree_map_only(OnDevice, lambda tensor: tensor.values, (arguments, inner))
    result = executed(operation, *inner_arguments, **inner)
    if operation is aten.copy_.default and not isinstance(arguments[0], OnDevice):
        return arguments[0]
    if asked == "cpu":
        return result
    wrapped = tree_map_only(Tensor, lambda tensor: tensor if isinstance(tensor, OnDevice) else OnDevice(tensor), result)
    return return_and_correct_aliasing(operation, arguments, options, wrapped)


def executed(function, *arguments, **options):
    """The result of a function of tensors on the CPU, which the graph that is being captured repeats."""
    result = function(*arguments, **options)
    if COUNTED.capturing:
        COUNTED.capturing.calls.append((function, arguments, options, result))
    return result


class Graph:
    """Replaces torch.cuda.CUDAGraph: it repeats what was executed while it was captured."""

    def __init__(self):
        self.calls: list[tuple] = []

    def replay(self) -> None:
        COUNTED.launches["graph"] += 1
        for function, arguments, options, result in self.calls:
            again = function(*arguments, **options)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():  # neither a view nor in place
                    old.copy_(new)


@contextmanager
def capture(graph: Graph) -> Iterator[None]:
    """Replaces `torch.cuda.graph`."""
    COUNTED.capturing = graph
    try:
        yield
    finally:
        COUNTED.capturing = None


class Stream:
    """Replaces torch.cuda.Stream: there is one."""

    def wait_stream(self, other: "Stream") -> None:
        pass


def may_mix(operation, arguments: tuple, there: list[Tensor]) -> bool:
    """Whether CUDA lets an operation have these tensors of the CPU."""
    if operation in COPIES:
        return True
    if operation in INDEXED:
        values = arguments[2] if len(arguments) > 2 else None
        return isinstance(arguments[0], OnDevice) and (
            values is None or isinstance(values, OnDevice) or not values.dim()
        )
    scalars = ("_foreach", "_fused", "where", "fill", "masked_fill")
    pointwise = torch.Tag.pointwise in operation.tags or operation.__name__.startswith(scalars)
    return pointwise and all(tensor.dim() == 0 for tensor in there)


ON_CPU = torch.nn.functional.scaled_dot_product_attention


def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """`scaled_dot_product_attention`, which is one launch on a GPU and many operations on a CPU."""
    if not isinstance(query, OnDevice):
        return ON_CPU(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if torch.is_autocast_enabled("cuda"):
        query, key, value = (tensor.to(torch.get_autocast_dtype("cuda")) for tensor in (query, key, value))
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(query.dtype)
    tensors = [tensor for tensor in (query, key, value, attn_mask) if tensor is not None]
    types = {tensor.dtype for tensor in tensors if tensor.dtype != torch.bool}
    if len(types) > 1 or not all(isinstance(tensor, OnDevice) for tensor in tensors):
        raise RuntimeError(f"attention of different types or devices: {types}, {[tensor.device for tensor in tensors]}")
    return Attention.apply(query, key, value, attn_mask, is_causal, scale)


class Attention(torch.autograd.Function):
    """One launch forward and one backward; a boolean mask is one more, which makes numbers of it."""

    @staticmethod
    def forward(ctx, query, key, value, mask, causal, scale):
        ctx.save_for_backward(query, key, value)
        ctx.rest = mask if mask is None else mask.values, causal, scale
        COUNTED.launches["attention"] += 1 if mask is None or mask.dtype != torch.bool else 2
        tensors = (query.values, key.values, value.values)
        return OnDevice(executed(ON_CPU, *tensors, ctx.rest[0], is_causal=causal, scale=scale))

    @staticmethod
    def backward(ctx, gradient):
        COUNTED.launches["attention backward"] += 1
        tensors = [tensor.values for tensor in ctx.saved_tensors]
        return *map(OnDevice, executed(attention_gradients, tensors, gradient.values, *ctx.rest)), None, None, None


def attention_gradients(tensors: list[Tensor], gradient: Tensor, mask: Tensor | None, causal: bool, scale) -> tuple:
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    with torch.enable_grad():
        result = ON_CPU(*tensors, mask, is_causal=causal, scale=scale)
    return torch.autograd.grad(result, tensors, gradient)


STATE = torch.arange(16, dtype=torch.uint8)  # of the device's generator: the CPU's draws its numbers
OF_CUDA = {
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "get_device_name": lambda device=None: "stand-in device",
    "get_device_properties": lambda device=None: SimpleNamespace(total_memory=1 << 34, multi_processor_count=1),
    "is_bf16_supported": lambda including_emulation=True: True,
    "get_rng_state": lambda device=0: STATE,
    "get_rng_state_all": lambda: [STATE],
    "max_memory_allocated": lambda device=None: 0,
    "CUDAGraph": Graph,
    "graph": capture,
    "Stream": Stream,
    "current_stream": lambda device=None: Stream(),
    "stream": lambda stream: nullcontext(),
    "is_current_stream_capturing": lambda: COUNTED.capturing is not None,
}
NOTHING = ("_lazy_init", "set_rng_state", "set_rng_state_all", "manual_seed", "manual_seed_all", "synchronize")
NOTHING += ("empty_cache", "reset_peak_memory_stats")
OF_CUDA |= {name: lambda *arguments, **options: None for name in NOTHING}  # torch.compile refuses one for two names


class Generator(torch.Generator):
    """A generator of the CPU, which draws the numbers of the device too."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu")


APPLY = torch.nn.Module._apply


def apply(module, function, recurse=True):
    """`Module._apply`: parameters that it replaces keep their hooks, as those that a GPU moves."""
    hooks = {name: each._backward_hooks for name, each in module._parameters.items() if each is not None}
    result = APPLY(module, function, recurse)
    for name, own in hooks.items():
        if own:
            module._parameters[name]._backward_hooks = own
    return result


@contextmanager
def stand_in() -> Iterator[Counted]:
    """Within it there is a CUDA device; yields what is counted, from here on."""
    COUNTED.reset()
    run = threading.Thread.run

    def run_with_device(thread: threading.Thread) -> None:  # a dispatch mode is of one thread
        with Dispatch():
            run(thread)

    with ExitStack() as stack:
        for name, function in OF_CUDA.items():
            stack.enter_context(patch.object(torch.cuda, name, function))
        stack.enter_context(patch.object(torch.nn.functional, "scaled_dot_product_attention", attention))
        stack.enter_context(patch.object(torch, "Generator", Generator))
        stack.enter_context(patch.object(torch.nn.Module, "_apply", apply))
        stack.enter_context(patch.object(threading.Thread, "run", run_with_device))
        lifts = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") makes a copy that a mode sees
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifts)
        replaces = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # `module.to` changes the class of parameters
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, replaces)
        stack.enter_context(Dispatch())
        yield COUNTED
