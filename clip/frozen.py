"""Products with frozen weights: what is computed of the weights is computed once, not in every
step.
"""

from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import LayerNormFp32
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.weak import WeakTensorKeyDictionary

# Frozen tensor -> {type and factor: (the tensor as it was, its version, what was computed of it)}
_kept = WeakTensorKeyDictionary()


def matmul_dtype(x: Tensor, weights: torch.dtype) -> torch.dtype:
    """The type that products of x with weights of a type are computed in: that of the weights, or
    autocast's.
    """
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weights


def kept(weights: Tensor, dtype: torch.dtype, factor: float = 1) -> Tensor:
    """Weights in a type, times a factor; for frozen ones computed once, and again after they have
    changed.
    """
    if weights.dtype == dtype and factor == 1:
        return weights
    # Dynamo cannot trace the last
    if torch.compiler.is_compiling() or weights.requires_grad or weights.is_inference():
        return (weights * factor).to(dtype)
    known = _kept.setdefault(weights, {})
    version = weights._version
    before, then, made = known.get((dtype, factor), (None, None, None))
    if before is None or (before.data_ptr(), then) != (weights.data_ptr(), version):
        with torch.inference_mode(False), torch.no_grad():
            before = weights.detach()
            made = (weights * factor).to(dtype)
        known[dtype, factor] = before, version, made
    return made


def linear(x: Tensor, weight: Tensor, bias: Tensor, part: slice = slice(None)) -> Tensor:
    """(..., inputs) -> (..., outputs), or some of the outputs."""
    dtype = matmul_dtype(x, weight.dtype)
    return F.linear(x.to(dtype), kept(weight, dtype)[part], kept(bias, dtype)[part])


def applied(module: Any, x: Tensor) -> Tensor:
    """A module's output."""
    if is_plain_linear(module) and not (module._forward_hooks or module._forward_pre_hooks):
        return linear(x, module.weight, module.bias)
    return module(x)


def is_plain_linear(layer: Any) -> bool:
    """Whether a module computes what its weight and bias say."""
    return (
        isinstance(layer, nn.Linear)
        and type(layer).forward is nn.Linear.forward
        and layer.bias is not None
    )


def is_frozen_linear(layer: Any) -> bool:
    """Whether it is a plain linear layer that nobody trains, with tensors of its own."""
    own = is_plain_linear(layer) and not is_parametrized(layer)
    return own and not (layer.weight.requires_grad or layer.bias.requires_grad)


def normed(norm: nn.LayerNorm, x: Tensor, dtype: torch.dtype) -> Tensor:
    """LayerNorm's output in a type."""
    if x.is_cuda and x.dtype == dtype != norm.weight.dtype and isinstance(norm, LayerNormFp32):
        # CUDA's kernel computes in fp32, whatever the type of its arguments, which autocast would
        # convert.
        with torch.autocast("cuda", enabled=False):
            return F.layer_norm(
                x, norm.normalized_shape, kept(norm.weight, dtype), kept(norm.bias, dtype), norm.eps
            )
    return norm(x).to(dtype)


def quick_gelu_mlp(mlp: Any, x: Tensor) -> Tensor:
    """The output of an MLP with `QuickGELU`: x sigmoid(1.702 x) = silu(1.702 x) / 1.702."""
    up = mlp.c_fc
    down = mlp.c_proj
    scale = 1.702
    dtype = matmul_dtype(x, up.weight.dtype)
    weights = (
        kept(up.weight, dtype),
        kept(up.bias, dtype, scale),
        kept(down.weight, dtype),
        kept(down.bias, dtype),
    )
    return ScaledMLP.apply(x.to(dtype).flatten(0, -2), *weights, scale).unflatten(0, x.shape[:-1])


class ScaledMLP(torch.autograd.Function):
    """silu(scale x A + a) B / scale + b for frozen A, B.

    The products multiply by these numbers, which cancel in the gradient, so that no pass over the
    hidden values does.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, first: Tensor, scaled: Tensor, last: Tensor, bias: Tensor, scale: float
    ) -> Tensor:
        hidden = torch.addmm(scaled, x, first.T, alpha=scale)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(hidden, first, last)
        active = F.silu(hidden, inplace=not ctx.needs_input_grad[0])
        return torch.addmm(bias, active, last.T, alpha=1 / scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, first, last = ctx.saved_tensors
        of_hidden = gradient @ last
        torch.ops.aten.silu_backward.grad_input(of_hidden, hidden, grad_input=of_hidden)
        return of_hidden @ first, None, None, None, None, None
