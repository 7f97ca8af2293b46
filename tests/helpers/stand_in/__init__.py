"""A CUDA device without a GPU: its tensors are computed on the CPU, and what a GPU would do is
counted.

Devices, autograd, autocast, the gradient scaler, `.item()` and copies behave as on a GPU; an
operation on tensors of two devices raises torch's error. It shows no rounding, kernels, memory or
speed of a GPU. It needs Linux and g++, and must be imported before torch.
"""

import ctypes
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch


def compiled() -> ctypes.CDLL:
    """The library of device.cpp, with torch's libraries that it needs."""
    assert "torch" not in sys.modules
    torch_folder = Path(str(find_spec("torch").origin)).parent
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(torch_folder / "lib" / name), ctypes.RTLD_GLOBAL)
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "-std=c++20",
            "-shared",
            "-fPIC",
            Path(__file__).with_name("device.cpp"),
            "-o",
            f"{folder}/device.so",
        ]
        places = [f"-I{torch_folder}/include", f"-L{torch_folder}/lib", "-lc10", "-ltorch_cpu"]
        subprocess.run(["g++", *words, *places], check=True)
        return ctypes.CDLL(f"{folder}/device.so")


LIBRARY = compiled()
LIBRARY.announce()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing  # noqa: E402
from torch.utils._pytree import tree_leaves, tree_map_only  # noqa: E402

from trainers.base import copies  # noqa: E402

LIBRARY.guard()

aten = torch.ops.aten
CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
# Between two devices
COPIES = {
    aten.copy_.default,
    aten._to_copy.default,
    aten._foreach_copy_.default,
}
INDEXED = {
    aten.index.Tensor,
    aten._unsafe_index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
}
# By indices on either device
INDEXED |= {
    aten._index_put_impl_.default,
    aten._unsafe_index_put.default,
}
PRODUCTS = {
    aten.mm.default,
    aten.bmm.default,
    aten.convolution.default,
    aten.addmm.default,
    aten.baddbmm.default,
}
READS = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default}
SIZED = {
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
}
SIZED |= {aten.repeat_interleave.Tensor}  # the size of the result depends on values
FREE = {
    aten.empty.memory_format,
    aten.empty_strided.default,
    aten.empty_like.default,
    aten.new_empty.default,
}
FREE |= {
    aten._reshape_alias.default,
    aten.detach.default,
    aten.alias.default,
    aten._unsafe_view.default,
}
# Memory without values, and views that the schema does not say are some
FREE |= {aten.lift_fresh.default}
ON_CPU = torch.nn.functional.scaled_dot_product_attention


class Counts:
    """Launches by operation, and waits of the CPU by their reason."""

    def reset(self) -> None:
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def operation(
        self, operation, arguments: tuple, options: dict, here: list[Tensor], there: list[Tensor]
    ) -> None:
        """Count an operation. `here` are its tensors on the device, `there` those on the CPU."""
        name = str(operation)
        target = options.get("device")
        copies = operation in (aten._to_copy.default, aten.copy_.default)
        to_cpu = (
            torch.device(target).type == "cpu"
            if target
            else any(arguments[0] is tensor for tensor in there)
        )
        if operation in READS:
            self.wait(name)
        elif copies and here and to_cpu:
            self.wait("copy to the CPU")
        elif not (copies and there):
            if operation in SIZED:
                self.wait(name)
            if operation not in FREE and not is_view(operation) and (not here or here[0].numel()):
                self.launches[name] += 1

    def wait(self, reason: str) -> None:
        self.waits[reason] += 1


COUNTS = Counts()


def is_view(operation) -> bool:
    """Whether the results of an operation share the memory of an argument that it leaves as it
    is.
    """
    results = operation._schema.returns
    return bool(results) and all(
        result.alias_info is not None and not result.alias_info.is_write for result in results
    )


class OnDevice(Tensor):
    """A tensor on the device. `values` is what it holds, on the CPU."""

    values: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: Tensor):
        how = {
            "strides": values.stride(),
            "storage_offset": values.storage_offset(),
            "layout": values.layout,
        }
        return Tensor._make_wrapper_subclass(
            cls, values.size(), dtype=values.dtype, device=CUDA, **how
        )

    def __init__(self, values: Tensor):
        self.values = values

    @property
    def data(self):
        return OnDevice(self.values.data)

    @data.setter
    def data(self, new):
        Tensor.data.__set__(self, new)
        self.values = new.values

    def tolist(self):
        COUNTS.wait("tolist")
        return self.values.tolist()

    def __deepcopy__(self, memo):
        copied = OnDevice(self.values.detach().clone())
        is_parameter = getattr(self, "_is_param", False)
        return memo.setdefault(
            id(self), torch.nn.Parameter(copied, self.requires_grad) if is_parameter else copied
        )

    @classmethod
    def __torch_dispatch__(cls, operation, types, arguments=(), options=None):
        return compute(operation, arguments, options or {})


class Dispatch(TorchDispatchMode):
    """Sends operations that make tensors on the device through `compute`, too."""

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
    here = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    there = [tensor for tensor in tensors if not isinstance(tensor, OnDevice)]
    asked = torch.device(options["device"]).type if options.get("device") is not None else ""
    if not here and asked != "cuda":
        return operation(*arguments, **options)
    if here and there and not may_mix(operation, arguments, there):
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found cuda:0 and cpu in "
            f"{operation}"
        )
    if (
        operation in PRODUCTS
        and len(types := {tensor.dtype for tensor in tensors if tensor.is_floating_point()}) > 1
    ):
        raise RuntimeError(f"expected tensors of the same dtype in {operation}, got {types}")
    COUNTS.operation(operation, arguments, options, here, there)
    inner = {
        key: value for key, value in options.items() if key not in ("non_blocking", "pin_memory")
    }
    inner |= {"device": CPU} if asked else {}
    inner_arguments, inner = tree_map_only(
        OnDevice, lambda tensor: tensor.values, (arguments, inner)
    )
    result = operation(*inner_arguments, **inner)
    if operation is aten.copy_.default and not isinstance(arguments[0], OnDevice):
        return arguments[0]
    if asked == "cpu":
        return result
    wrapped = tree_map_only(
        Tensor, lambda tensor: tensor if isinstance(tensor, OnDevice) else OnDevice(tensor), result
    )
    return return_and_correct_aliasing(operation, arguments, options, wrapped)


def may_mix(operation, arguments: tuple, there: list[Tensor]) -> bool:
    """Whether CUDA lets an operation have these tensors of the CPU."""
    if operation in COPIES:
        return True
    if operation in INDEXED:
        values = arguments[2] if len(arguments) > 2 else None
        on_device = values is None or isinstance(values, OnDevice) or not values.dim()
        return isinstance(arguments[0], OnDevice) and on_device
    scalars = ("_foreach", "_fused", "where", "fill", "masked_fill")
    pointwise = torch.Tag.pointwise in operation.tags or operation.__name__.startswith(scalars)
    return pointwise and all(tensor.dim() == 0 for tensor in there)


def attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    """`scaled_dot_product_attention`, which is one launch on a GPU and many operations on a CPU."""
    if not isinstance(query, OnDevice):
        return ON_CPU(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if torch.is_autocast_enabled("cuda"):
        query, key, value = (
            tensor.to(torch.get_autocast_dtype("cuda")) for tensor in (query, key, value)
        )
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(query.dtype)
    return Attention.apply(query, key, value, attn_mask, is_causal, scale)


class Attention(torch.autograd.Function):
    """One launch forward and one backward; a boolean mask is one more, which makes numbers of
    it.
    """

    @staticmethod
    def forward(ctx, query, key, value, mask, causal, scale):
        ctx.save_for_backward(query, key, value)
        ctx.rest = mask if mask is None else mask.values, causal, scale
        COUNTS.launches["attention"] += 1 if mask is None or mask.dtype != torch.bool else 2
        return OnDevice(
            ON_CPU(query.values, key.values, value.values, ctx.rest[0], 0.0, causal, scale=scale)
        )

    @staticmethod
    def backward(ctx, gradient):
        COUNTS.launches["attention backward"] += 1
        tensors = [tensor.values for tensor in ctx.saved_tensors]
        return (
            *map(OnDevice, attention_gradients(tensors, gradient.values, *ctx.rest)),
            None,
            None,
            None,
        )


def attention_gradients(
    tensors: list[Tensor], gradient: Tensor, mask: Tensor | None, causal: bool, scale
) -> tuple:
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    with torch.enable_grad():
        result = ON_CPU(*tensors, mask, is_causal=causal, scale=scale)
    return torch.autograd.grad(result, tensors, gradient)


# Of the device's generator: the CPU's draws its numbers
STATE = torch.arange(16, dtype=torch.uint8)
NOTHING = (
    "_lazy_init",
    "set_rng_state",
    "set_rng_state_all",
    "manual_seed",
    "manual_seed_all",
    "synchronize",
)
OF_CUDA = dict.fromkeys((*NOTHING, "empty_cache"), lambda *arguments, **options: None) | {
    "is_available": lambda: True,
    "current_device": lambda: 0,
    "get_device_name": lambda device=0: "stand-in",
    "is_bf16_supported": lambda including_emulation=True: True,
    "get_rng_state": lambda device=0: STATE,
    "get_rng_state_all": lambda: [STATE],
}


def swap_tensors(parameter, moved, swap=torch.utils.swap_tensors):
    """torch's own, which refuses a tensor with weak references."""
    copies._decomposed.pop(parameter, None)
    swap(parameter, moved)


@contextmanager
def stand_in() -> Iterator[Counts]:
    """Within it there is a CUDA device; yields what is counted, from here on."""
    COUNTS.reset()
    with ExitStack() as stack:
        for name, function in OF_CUDA.items():
            stack.enter_context(patch.object(torch.cuda, name, function))
        stack.enter_context(
            patch.object(torch.nn.functional, "scaled_dot_product_attention", attention)
        )
        stack.enter_context(
            patch.object(torch, "Generator", lambda device="cpu", new=torch.Generator: new("cpu"))
        )
        # torch.tensor(..., device="cuda") makes a copy that a mode sees
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, False)
        # `module.to` changes the class of parameters, which stay the same objects, as on a GPU
        torch.__future__.set_swap_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, False)
        stack.enter_context(patch.object(torch.utils, "swap_tensors", swap_tensors))
        stack.enter_context(Dispatch())
        yield COUNTS
