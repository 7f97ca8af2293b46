"""The steps of one of CLIP's transformer blocks, so that a tower can leave out those that it does
not need.
"""

from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, Transformer
from torch import Tensor

from .frozen import applied, is_frozen_linear, linear, matmul_dtype, normed, quick_gelu_mlp

# The parts of torch's attention module.
ATTENTION = {"in_proj_weight", "in_proj_bias", "out_proj", "parametrizations"}


def is_standard(transformer: Transformer) -> bool:
    """Whether all blocks are CLIP's own, which the functions below take apart without calling them.

    A block is not, if it has forward hooks where these functions do not call a module.
    """
    return getattr(transformer, "batch_first", True) and all(
        map(is_standard_block, transformer.resblocks)
    )


def is_standard_block(block: Any) -> bool:
    kind = type(block)
    own = (kind.__module__, kind.__name__) == (
        ResidualAttentionBlock.__module__,
        "ResidualAttentionBlock",
    )
    if not own and adapter_of(block) is None:
        return False
    attention = block.attn
    parts = {**attention._parameters, **attention._modules}
    known = all(name in ATTENTION or part is None for name, part in parts.items())
    not_called = (block, attention, block.mlp, *block.mlp)
    return known and not any(
        module._forward_hooks or module._forward_pre_hooks for module in not_called
    )


PARTS = {"qkv": (0, 3), "q": (0, 1), "kv": (1, 3), "v": (2, 3)}


def qkv(
    block: ResidualAttentionBlock, x: Tensor, which: str = "qkv", packing: Any = None
) -> Tensor:
    """Queries, keys and values of tokens, or some of these: (batch, tokens, width) -> (batch,
    tokens, n * width).

    `packing` is a `layout.Packing` if the tokens are packed.
    """
    weight = block.attn.in_proj_weight
    bias = block.attn.in_proj_bias
    width = x.shape[-1]
    first, end = (part * width for part in PARTS[which])
    x = normed(block.ln_1, x, matmul_dtype(x, weight.dtype))
    parts = linear(x, weight, bias, slice(first, end))
    added = adapter_delta(block, "attention_input", x, packing)
    return parts if added is None else parts + added[..., first:end]


def adapter_of(block: Any) -> Any:
    """The `BlockAdapter` of a block, or None."""
    return getattr(block, "adapter", None)


def is_stochastic(block: Any) -> bool:
    """Whether the block's adapter draws random numbers for each token."""
    return getattr(adapter_of(block), "is_stochastic", False)


def draws_after_input(block: Any) -> bool:
    """Whether it may draw after queries, keys and values, so that no token's output can be left
    out.
    """
    return is_stochastic(block) and not adapter_of(block).defined <= {"attention_input"}


def adapter_delta(block: Any, method: str, x: Tensor, packing: Any = None) -> Tensor | None:
    """The sum that a method of the block's adapter adds for x, in the type of x; None without an
    adapter.

    An adapter computes in fp32 where the block has half precision, as its weights are in fp32. It
    gets packed tokens as padded rows if it draws random numbers for them.
    """
    adapter = adapter_of(block)
    if adapter is None or method not in adapter.defined:
        return None
    in_rows = packing is not None and adapter.is_stochastic
    tokens = packing.in_rows(x) if in_rows else x
    added = getattr(adapter, method)(
        tokens if torch.is_autocast_enabled(x.device.type) else not_half(tokens)
    )
    if added is None:
        return None
    return (packing.from_rows(added) if in_rows else added).to(x.dtype)


def split_heads(block: ResidualAttentionBlock, parts: Tensor) -> tuple[Tensor, ...]:
    """What `qkv` returned, (batch, tokens, n * width), as n tensors (batch, heads, tokens, width /
    heads).
    """
    shape = parts.shape[-1] // len(block.ln_1.weight), block.attn.num_heads, -1
    return tuple(part.transpose(1, 2) for part in parts.unflatten(-1, shape).unbind(2))


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Multi-head attention, before the output projection: (batch, heads, tokens, ...) -> (batch,
    tokens, width).

    A mask is added to the scores: 0 where a query reads a key, else -inf.
    """
    if q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.requires_grad:
        attended = bf16_attention(q, k, v, mask, causal)
    else:
        attended = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
    return attended.transpose(1, 2).flatten(2)


def bf16_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """`F.scaled_dot_product_attention`, whose own gradient takes two to five times as long in bf16
    on a CPU.

    With more than 64 keys the scores are rounded to bf16; in an evaluation, which needs no
    gradient, they are not.
    """
    if k.shape[-2] <= 64:  # as fast as products
        mask = None if mask is None else mask.float()
        return F.scaled_dot_product_attention(
            q.float(), k.float(), v.float(), mask, is_causal=causal
        ).to(q.dtype)
    scores = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)
    if causal:
        mask = torch.full(
            scores.shape[-2:], -torch.inf, dtype=scores.dtype, device=scores.device
        ).triu(1)
    if mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1) @ v


def block_output(
    block: ResidualAttentionBlock, x: Tensor, attended: Tensor, packing: Any = None
) -> Tensor:
    """The block's output from its input and the result of attention."""
    adapter = adapter_of(block)
    parallel = None
    products = matmul_dtype(x, block.attn.in_proj_bias.dtype)
    if adapter is not None and "parallel" in adapter.defined:
        parallel = adapter_delta(block, "parallel", normed(block.ln_1, x, products), packing)
    projected = applied(block.attn.out_proj, attended)
    x = x + block.ls_1(plus(projected, adapter_delta(block, "attention_output", attended, packing)))
    hidden = normed(block.ln_2, x, products)
    output = plus(mlp_output(block.mlp, hidden), adapter_delta(block, "mlp", hidden, packing))
    return plus(x + block.ls_2(output), parallel)


def mlp_output(mlp: Any, x: Tensor) -> Tensor:
    """The output of a block's MLP, by a faster form if it is OpenAI's and nothing in it learns."""
    if isinstance(mlp.gelu, QuickGELU) and all(map(is_frozen_linear, (mlp.c_fc, mlp.c_proj))):
        return quick_gelu_mlp(mlp, x)
    return mlp(x)


def not_half(x: Tensor) -> Tensor:
    """In fp32 if x is in half precision."""
    return x.float() if x.element_size() < 4 else x


def plus(x: Tensor, added: Tensor | None) -> Tensor:
    return x if added is None else x + added


def local_features(clip: Any, x: Tensor) -> Tensor:
    """Features of single patches, as MaskCLIP and LoCoOp compute them: the last block without its
    attention.

    Args:
        clip: the backbone, with a vision transformer.
        x: (batch, tokens, width), the input of its last layer (`encode_image(..., read=(-1,))`).

    Returns:
        (batch, patches, joint width), not normalised: each patch's value, through the rest of the
        block and `proj`.
    """
    visual = clip.visual
    block = visual.transformer.resblocks[-1]
    rows, columns = visual.grid_size
    x = x[:, 1 : 1 + rows * columns]
    x = block_output(block, x, qkv(block, x, "v"))
    return normed(visual.ln_post, x, matmul_dtype(x, visual.proj.dtype)) @ visual.proj
