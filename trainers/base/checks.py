"""Checks of a method's own code, at points where a mistake would give wrong numbers without an error."""

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clip import CLIP, BlockAdapter, WithAdded
from common.errors import UsageError, one_line

from .prompted import PromptedCLIP, PromptLearner

if TYPE_CHECKING:
    from .trainer import PromptTrainer

TOLERANCE = 1e-3  # of the largest value


def check_learner(trainer: "PromptTrainer") -> None:
    """Raise UsageError for a model with nothing to learn, or with adapters that the fast towers cannot use."""
    name, model = type(trainer).__name__, trainer.model
    if trainer.learns and not trainer.get_model_names():
        raise UsageError(f"{name} has nothing to train with these settings", "change them, or set `learns = False`")
    for adapter, width in {type(adapter): (adapter, width) for adapter, width in adapters_of(model.clip)}.values():
        check_adapter(adapter, width)


def adapters_of(clip: CLIP) -> list[tuple[BlockAdapter, int]]:
    """The adapters in the blocks of a CLIP, each with the width of its tokens."""
    found = ((getattr(module, "adapter", None), module) for module in clip.modules())
    return [
        (adapter, module.ln_1.normalized_shape[0]) for adapter, module in found if isinstance(adapter, BlockAdapter)
    ]


@torch.no_grad()
def check_adapter(adapter: BlockAdapter, width: int) -> None:
    """Raise UsageError for an adapter that mixes tokens, or draws random numbers without saying so.

    It is tried with random weights, as it may start from zero: all tokens together, and some in another order.
    """
    kind, tried = type(adapter).__name__, deepcopy(adapter)
    remedy = "see BlockAdapter in docs/methods.md"
    tensor = next(tried.parameters(), None)
    numbers = torch.Generator().manual_seed(0)
    for parameter in tried.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=numbers))
    x = torch.randn(2, 3, width, generator=numbers).to("cpu" if tensor is None else tensor.device)
    tried.train(not tried.draws)
    for name in tried.defined:
        method = getattr(tried, name)
        try:
            together, alone = method(x), method(x.view(1, 6, width)[:, [4, 0, 3]])
        except (RuntimeError, ValueError, IndexError) as error:
            raise UsageError(f"{kind}.{name} cannot compute single tokens ({one_line(error)})", remedy) from error
        if together is not None and differs(together.flatten(0, 1)[[4, 0, 3]], alone[0]):
            what = f"{kind}.{name} mixes tokens, or draws random numbers without `draws`"
            raise UsageError(f"{what}: the fast towers would give other results than the plain ones", remedy)


def differs(one: Tensor, other: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Whether two tensors differ by more than rounding."""
    return bool((one - other).abs().max() > tolerance * one.abs().max())


def check_features(learner: PromptLearner, features: Tensor) -> None:
    """Raise UsageError for features, which `image` of a method returned for the first batch, longer than unit texts."""
    kind = type(learner)
    longest = 1.0 if kind.image is PromptLearner.image else float(features.detach().float().norm(dim=-1).max())
    if longest > 1.01:
        what = f"{kind.__name__}.image returns features of length {longest:.3g}"
        raise UsageError(what, "return them of unit length, by `trainers.base.prompted.normalize`")


def check_loss(trainer: "PromptTrainer", returned: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and the logged values that a `loss` returned; raises UsageError for anything else."""
    if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], dict)):
        what = f"{type(trainer).__name__}.loss returns a {type(returned).__name__}"
        raise UsageError(what, "return the loss and a dict of its parts, which may be empty: `loss, {}`")
    return returned


def check_registered(model: PromptedCLIP) -> None:
    """Raise UsageError for a tensor in a method's private copy of the backbone that is not in the prompt learner."""
    known = {id(tensor) for part in (model, model.frozen) for tensor in (*part.parameters(), *part.buffers())}
    changes = (
        getattr(module.change, "__self__", module.change)
        for module in model.clip.modules()
        if isinstance(module, WithAdded)
    )
    parts: list[Any] = [model.clip, *(adapter for adapter, _ in adapters_of(model.clip)), *changes]
    for part in parts:
        for name, tensor in (*part.named_parameters(), *part.named_buffers()) if hasattr(part, "modules") else ():
            if id(tensor) not in known:
                what = f"{type(model.prompt_learner).__name__}.install adds {type(part).__name__}.{name}"
                raise UsageError(
                    f"{what}, which is not in the prompt learner", "make it there: else it is neither trained nor saved"
                )
