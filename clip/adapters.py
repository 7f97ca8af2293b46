"""Learned modules inside the blocks of a CLIP that is otherwise frozen."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import open_clip
import torch
from open_clip.timm_model import TimmModel
from timm.models.eva import EvaBlockPostNorm
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .blocks import (
    adapter_delta,
    adapter_of,
    attention,
    block_output,
    not_half,
    plus,
    qkv,
    split_heads,
)
from .errors import ClipError


class BlockAdapter(nn.Module):
    """The changes of one transformer block. A subclass defines the methods that it needs; the
    others add nothing.

    All tensors are (rows, tokens, width), in fp32 or, under amp, whatever the block computes in.
    Each token must be treated by itself, because the fast towers give only the tokens that are
    needed, in any order; the exception is `token_dropout`, which says so by `is_stochastic`.
    """

    defined: frozenset[str]  # the methods below that a subclass defines

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)  # such as nn.Linear's, for an adapter that is one
        names = ("attention_input", "attention_output", "mlp", "parallel")
        self.defined = frozenset(
            name for name in names if getattr(type(self), name) is not getattr(BlockAdapter, name)
        )

    @property
    def is_stochastic(self) -> bool:
        """Whether the next forward pass draws random numbers for each token."""
        return False

    def attention_input(self, x: Tensor) -> Tensor | None:
        """The output of `ln_1` -> what is added to queries, keys and values, (rows, tokens, 3 *
        width).
        """
        return None

    def attention_output(self, x: Tensor) -> Tensor | None:
        """The heads' outputs, before the output projection -> what is added to the projection."""
        return None

    def mlp(self, x: Tensor) -> Tensor | None:
        """The output of `ln_2` -> what is added to the MLP's output."""
        return None

    def parallel(self, x: Tensor) -> Tensor | None:
        """The output of `ln_1` -> what is added to the block's output."""
        return None

    def folded(self, block: Any) -> dict[str, Tensor] | None:
        """The block's tensors, by their names in it, with which it computes the same without the
        adapter in a test.

        None if there are no such tensors, because the adapter is not a linear map of an input of
        the block's own maps.
        """
        return None


class AdaptedBlock(nn.Module):
    """An `open_clip.transformer.ResidualAttentionBlock` with an adapter; its own tensors keep their
    names.
    """

    def __init__(self, block: nn.Module, adapter: BlockAdapter):
        super().__init__()
        for name, module in block.named_children():
            self.add_module(name, module)
        self.__dict__["adapter"] = adapter  # of the prompt learner, which is registered there

    adapter: BlockAdapter

    def get_weight_dtype(self) -> torch.dtype:
        """For open_clip, which asks the first block."""
        return self.get_submodule("mlp.c_fc").weight.dtype  # type: ignore[return-value]

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
        """(rows, tokens, width) to the same. A mask is 0 where a query reads a key, and -inf
        elsewhere.
        """
        block: Any = self
        q, k, v = split_heads(block, qkv(block, x))
        # Of each head of each row, as torch's attention takes it, or of all
        if attn_mask is not None:
            attn_mask = (
                attn_mask.unflatten(0, (len(x), -1)) if attn_mask.dim() == 3 else attn_mask
            ).to(q.dtype)
        return block_output(block, x, attention(q, k, v, attn_mask))


def adapt(tower: Any, layer: int, adapter: BlockAdapter) -> None:
    """Put an adapter into the block of a layer (from 0) of a private copy's text tower `clip`, or
    of `clip.visual`.

    Raises:
        ClipError: the block has one, or is of a kind that takes none.
    """
    blocks = tower.trunk.blocks if isinstance(tower, TimmModel) else tower.transformer.resblocks
    if adapter_of(blocks[layer]) is not None:
        raise ClipError(
            f"the block of layer {layer} has an adapter",
            "give it one adapter that computes both changes",
        )
    blocks[layer] = (AdaptedTimmBlock if isinstance(tower, TimmModel) else AdaptedBlock)(
        blocks[layer], adapter
    )


def adapt_input(tower: Any, change: Callable[[Tensor], Tensor]) -> None:
    """Add a change of the tokens, which computes in fp32, to the input of layer 0; `tower` is as
    for `adapt`.
    """
    names = ("token_embedding", "ln_pre", "norm_pre")
    part = tower.trunk if isinstance(tower, TimmModel) else tower
    name = next(name for name in names if hasattr(part, name))
    setattr(part, name, WithAdded(getattr(part, name), change))


class AdaptedTimmBlock(nn.Module):
    """A block of timm's `VisionTransformer` or `Eva` with an adapter; it must be of a private copy.

    Raises:
        ClipError: the block has other parts.
    """

    def __init__(self, block: Any, adapter: BlockAdapter):
        super().__init__()
        attention: Any = getattr(block, "attn", None)
        if not all(
            hasattr(part, name)
            for part, name in ((block, "mlp"), (block, "norm1"), (attention, "proj"))
        ):
            raise ClipError(
                f"a {type(block).__name__} takes no adapter",
                "choose a method of prompts or features",
            )
        self.block = block
        self.__dict__["adapter"] = adapter
        if "attention_input" in adapter.defined:
            if attention.qkv is None:
                attention.qkv = Joined(attention.q_proj, attention.k_proj, attention.v_proj)
            elif getattr(attention, "q_bias", None) is not None:
                attention.qkv_bias_separate = True  # else its weight is used, and not the module
            attention.qkv = Changed(attention.qkv, adapter, "attention_input")
        if "attention_output" in adapter.defined:
            attention.proj = Changed(attention.proj, adapter, "attention_output")
        if "mlp" in adapter.defined:
            block.mlp = Changed(block.mlp, adapter, "mlp")

    adapter: BlockAdapter

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        block: Any = self.block
        after = block(x, **options)
        if "parallel" in self.adapter.defined:
            # Whose attention reads the tokens as they are
            after_norm = isinstance(block, EvaBlockPostNorm)
            after = plus(
                after, adapter_delta(self, "parallel", x if after_norm else block.norm1(x))
            )
        return after


class Changed(nn.Module):
    """A module to whose output a method of an adapter adds its change for the same input."""

    def __init__(self, module: nn.Module, adapter: BlockAdapter, method: str):
        super().__init__()
        self.module = module
        self.method = method
        self.__dict__["adapter"] = adapter

    def forward(self, x: Tensor) -> Tensor:
        return plus(self.module(x), adapter_delta(self, self.method, x))


class Joined(nn.Module):
    """Queries, keys and values of three modules, one after the other."""

    def __init__(self, *maps: nn.Module):
        super().__init__()
        self.maps = nn.ModuleList(maps)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([map_of(x) for map_of in self.maps], dim=-1)


class WithAdded(nn.Module):
    """A module of the frozen CLIP to whose output something is added, as `clip.token_embedding` or
    `visual.ln_pre`.

    Args:
        module: the frozen one.
        change: its output -> what is added; computes in fp32.
    """

    def __init__(self, module: nn.Module, change: Callable[[Tensor], Tensor]):
        super().__init__()
        self.module = module
        self.change = change

    @property
    def weight(self) -> Any:
        return self.module.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.module(x)
        return x + self.change(not_half(x)).to(x.dtype)


def folded_weights(clip: open_clip.CLIP) -> dict[str, Tensor] | None:
    """The state dict of a plain CLIP that computes what this one does in a test; None if there is
    none.
    """
    state = {
        key: value.detach().clone()
        for key, value in clip.state_dict().items()
        if "parametrizations." not in key
    }
    for name, module in clip.named_modules():
        if parametrize.is_parametrized(module):
            state |= {
                f"{name}.{key}".removeprefix("."): getattr(module, key).detach()
                for key in module.parametrizations
            }
        tensors = module.adapter.folded(module) if isinstance(module, AdaptedBlock) else {}
        if tensors is None or isinstance(module, WithAdded | AdaptedTimmBlock):
            return None
        state |= {f"{name}.{key}": value.detach() for key, value in tensors.items()}
    return state


def private_copy(clip: open_clip.CLIP) -> open_clip.CLIP:
    """A CLIP whose modules may be replaced; its tensors are those of the original, not copies."""
    tensors = [*clip.parameters(), *clip.buffers()]
    return deepcopy(clip, {id(tensor): tensor for tensor in tensors})


def token_dropout(x: Tensor, p: float) -> Tensor:
    """Dropout of (rows, tokens, width), with a mask that does not depend on how many tokens follow.

    So both forms of the text tower have the same masks on a CPU, though the fast one leaves out
    what follows EOT. The probability is rounded to 1 / 65536.
    """
    rows, tokens, width = x.shape
    generator = torch.Generator(x.device).manual_seed(int(torch.randint(2**62, ())))
    numbers = torch.empty(tokens, -(-rows * width // 4), dtype=torch.int64, device=x.device)
    numbers.random_(-(2**63), None, generator=generator)
    chances = numbers.view(torch.int16)[:, : rows * width].view(tokens, rows, width).transpose(0, 1)
    kept = (chances >= round(p * 65536) - 32768).to(x.dtype)
    return x * (kept * (1 / (1 - p)))  # a product takes half of the time of `torch.where`
