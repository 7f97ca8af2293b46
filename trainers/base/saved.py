"""Whether a checkpoint holds all that a trained model computes with."""

import time
from contextlib import redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clip import current_ranks
from common.errors import UsageError, one_line

from .build import build_model, without_training
from .checks import TOLERANCE, differs
from .precision import usable
from .prompted import PromptedCLIP

if TYPE_CHECKING:
    from .trainer import PromptTrainer

SAVED = "a Parameter or persistent Buffer of the prompt learner"


@torch.no_grad()
def check_saved(trainer: "PromptTrainer") -> None:
    """Check after training that a second model, which reads the checkpoint, gives the same logits.

    It costs the texts twice and two test images, draws no random numbers, and does not count as training
    time. Several ranks leave it out.

    Raises:
        UsageError: the logits differ.
    """
    if not trainer.get_model_names() or current_ranks().count > 1:
        return
    began, name, device = time.monotonic(), type(trainer).__name__, trainer.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), redirect_stdout(StringIO()):
        try:
            loaded = without_training(type(trainer), trainer.cfg, trainer.class_names, trainer.dataset_template, device)
            build_model(loaded, clip=trainer.model.frozen)
        except AttributeError as error:  # such as `dm`: a run may do without predictions
            failed = f"{name} cannot be built for predictions ({one_line(error)}): see build_prompts in docs/methods.md"
        else:
            failed = ""
            check_same_logits(trainer, loaded)
    if failed:
        print(failed)
    if hasattr(trainer, "time_start"):  # the published Dassl takes another clock
        trainer.time_start += time.monotonic() - began


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
        raise UsageError(
            f"{what}{names and f', which lacks {names}'}", f"make what a test reads {SAVED} (docs/methods.md)"
        )


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
