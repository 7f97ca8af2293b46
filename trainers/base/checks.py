"""Checks of a method's own code, at points where a mistake would give wrong numbers without an error."""

from contextlib import redirect_stdout
from copy import deepcopy
from io import StringIO
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clip import BlockAdapter
from common.errors import UsageError, one_line

from .build import adapters_of, build_model, without_training
from .precision import usable
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
    tried.train(not tried.is_stochastic)
    for name in tried.defined:
        method = getattr(tried, name)
        try:
            together, alone = method(x), method(x.view(1, 6, width)[:, [4, 0, 3]])
        except (RuntimeError, ValueError, IndexError) as error:
            raise UsageError(f"{kind}.{name} cannot compute single tokens ({one_line(error)})", remedy) from error
        if together is not None and differs(together.flatten(0, 1)[[4, 0, 3]], alone[0]):
            what = f"{kind}.{name} mixes tokens, or draws random numbers without `is_stochastic`"
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


@torch.no_grad()
def check_saved(trainer: "PromptTrainer") -> None:
    """Check after training that a new model with only what a checkpoint holds gives the same logits.

    It costs the texts twice and two test images, and draws no random numbers.

    Raises:
        UsageError: the logits differ.
    """
    if not trainer.get_model_names():
        return
    name, device, failed = type(trainer).__name__, trainer.device, ""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), redirect_stdout(StringIO()):
        try:
            loaded = without_training(type(trainer), trainer.cfg, trainer.class_names, trainer.dataset_template, device)
            build_model(loaded, clip=trainer.model.frozen)
        except AttributeError as error:  # such as `dm`: a run may do without predictions
            failed = f"{name} cannot be built for predictions ({one_line(error)}): see build_prompts in docs/methods.md"
        else:
            check_same_logits(trainer, loaded)
    if failed:
        print(failed)


def check_same_logits(trainer: "PromptTrainer", loaded: "PromptTrainer") -> None:
    """Load what a trainer would save into a method without training, and compare their logits for two test images."""
    loaded.model.towers = trainer.model.towers
    types = {name: tensor.dtype for name, tensor in tensors_of(trainer.model)}
    for name, tensor in tensors_of(loaded.model):
        tensor.data = tensor.data.to(types.get(name, tensor.dtype))
    state, metadata = trainer.saved_module().state_dict(), trainer.checkpoint_metadata()
    loaded.load_prompts({"state_dict": state, "epoch": trainer.max_epoch, "metadata": metadata}, "the checkpoint")
    tests = trainer.test_loader.dataset
    images = torch.stack([tests[number]["img"] for number in range(min(2, len(tests)))]).to(trainer.device)
    for method in (trainer, loaded):
        method.model.eval()
    ours, theirs = trainer.model_inference(images), loaded.model_inference(images)
    half = usable(trainer.settings.PREC, trainer.device) != "fp32"
    if ours.isfinite().all() and differs(ours, theirs, 10 * TOLERANCE if half else TOLERANCE):
        names = ", ".join(unsaved(trainer.model, loaded.model))
        what = f"{type(trainer).__name__} gives other logits than a model that reads its checkpoint"
        remedy = "make what a test reads a Parameter or persistent Buffer of the prompt learner (docs/methods.md)"
        raise UsageError(f"{what}{names and f', which lacks {names}'}", remedy)


def tensors_of(model: PromptedCLIP) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def unsaved(trained: PromptedCLIP, loaded: PromptedCLIP) -> list[str]:
    """The plain tensors of a trained model that a loaded one has otherwise, or not at all."""
    others = dict(loaded.named_modules())
    tensors = (
        (f"{name}.{key}".removeprefix("."), value, vars(others[name]).get(key) if name in others else None)
        for name, module in trained.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, Tensor)
    )
    return [name for name, value, other in tensors if not (isinstance(other, Tensor) and torch.equal(value, other))]
