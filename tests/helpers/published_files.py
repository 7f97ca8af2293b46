"""Checkpoints as the published code saves them."""

from collections import OrderedDict

import torch
from drawn import prompts_of

from clip import load_backbone

FOLDER = "MultiModalPromptLearner"  # MPL's registered name in the published code


def published_model(prompts, backbone, classes, prefix="module."):
    """The state dict of the published MPL's whole model: prompts, the classes' token buffers, and
    the frozen CLIP.
    """
    state = OrderedDict(prompts)
    state["prompt_learner.token_prefix"] = torch.randn(classes, 1, 64)
    state["prompt_learner.token_suffix"] = torch.randn(classes, 75, 64)
    for key, value in load_backbone(str(backbone)).state_dict().items():
        tower = (
            "image_encoder." + key.removeprefix("visual.")
            if key.startswith("visual.")
            else f"text_encoder.{key}"
        )
        state[key if key == "logit_scale" else tower] = value
    return OrderedDict((prefix + key, value) for key, value in state.items())


def published_training(parameters, epoch):
    """The other content of published checkpoints: the optimiser's state, and a scheduler with whole
    objects inside.
    """
    optimizer = torch.optim.SGD(parameters, lr=0.0035, momentum=0.9)
    successor = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5.0)
    sum(parameter.sum() for parameter in parameters).backward()
    optimizer.step()
    scheduler = {
        "successor": successor,
        "warmup_epoch": 1,
        "cons_lr": 1e-5,
        "base_lrs": [0.0035],
        "last_epoch": epoch,
    }
    return {
        "epoch": epoch,
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler,
        "val_result": None,
    }


def save_published(folder, state, epoch=5, saved_as=FOLDER, **training):
    """Write `<folder>/<saved_as>/model.pth.tar-<epoch>`, as the published code lays it out; returns
    its path.
    """
    file = folder / saved_as / f"model.pth.tar-{epoch}"
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "epoch": epoch, **training}, file)
    (file.parent / "checkpoint").write_text(f"{file.name}\n")
    return file


def randomised(trainer):
    """The trainer's prompts, moved off their initial values so that nothing passes by standing
    still.
    """
    generator = torch.manual_seed(3)
    for parameter in trainer.model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).to(
            parameter.device
        )
    return prompts_of(trainer)


def write_lora(folder, tensors: dict[str, torch.Tensor], **metadata) -> None:
    """Write `lora_weights.pt`, in fp32."""
    weights: dict = {}
    for name, tensor in tensors.items():
        layer, part, matrix = name.split(".")
        weights.setdefault(layer, {}).setdefault(part, {})[matrix] = tensor.float()
    settings = {"r": 2, "alpha": 1, "encoder": "both", "params": ["q", "k", "v"], "position": "all"}
    folder.mkdir(parents=True)
    torch.save({"weights": weights, "metadata": settings | metadata}, folder / "lora_weights.pt")
