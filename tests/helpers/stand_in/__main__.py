"""Steps of methods on the stand-in device: one line of JSON for each method and precision.

    PYTHONPATH=.:toolbox:tests/helpers python -m stand_in [METHOD ...]

A launch is an operation on the device. Their number does not depend on the width of the model, so
that the weights are narrow. It is that of the last step, as the first one caches. `loss` and
`logits` are differences from the CPU.
"""

import json
import random
import sys
import tempfile
from argparse import Namespace
from contextlib import redirect_stdout
from typing import Any

from stand_in import Counts, stand_in  # before torch

# isort: split

import torch
from open_clip import IMAGENET_CLASSNAMES

from benchmarks.worker import build
from clip.random_weights import random_clip
from common.start import ROOT
from configs.files import config_folder
from configs.recipes import recipe
from trainers import methods
from trainers.base.feature_method import FeatureMethod

CLASSES = 5
BATCH = 4
SENTENCES = ("DATASET.SENTENCES", str(ROOT / "configs/sentences/EuroSAT.json"))
OPTIONS = {
    "HiCroPL": SENTENCES,
    "MMApp": SENTENCES,
    "DPC+CoOp": ("TRAINER.COOP.TOPK", 2),
    **{
        f"ATPrompt+{base}": (f"TRAINER.{base.upper()}.ATTRIBUTES", ["color"])
        for base in ("CoOp", "CoCoOp", "MaPLe")
    },
}


def steps(method: str, backbone: str, prec: str, counts: Counts | None = None) -> dict:
    """The losses of training steps, the logits of a test batch and, of the last step, what was
    counted.
    """
    torch.manual_seed(1)
    protocol = recipe(method, "few_shot")
    settings = [*protocol.settings, *OPTIONS.get(method, ())]
    way = {
        "checkout": str(ROOT),
        "config": str(config_folder(method) / f"{protocol.cfg}.yaml"),
        "settings": settings,
    }
    way |= {
        "official": False,
        "sentences": dict.fromkeys(IMAGENET_CLASSNAMES[:CLASSES], ["a text"]),
        "trainer": method,
        "section": methods()[method].section(),
        "backbone": backbone,
    }
    trainer = build(Namespace(**way, form="fast", prec=prec, classes=CLASSES, batch=BATCH))
    # Small enough for the first step: by default a GradScaler begins with steps that it skips.
    enabled = trainer.scaler.is_enabled()
    scaler = torch.amp.GradScaler(trainer.device.type, 128.0, enabled=enabled)
    trainer.method.training.scaler = scaler
    losses = []
    for trainer.batch_idx in range(2):
        generator = torch.Generator().manual_seed(trainer.batch_idx)
        images = torch.randn(BATCH, 3, 224, 224, generator=generator)
        labels = (trainer.batch_idx + torch.arange(BATCH)) % CLASSES
        batch = {"img": prepared(trainer, images, labels), "label": labels}
        if counts:
            batch = {key: value.pin_memory() for key, value in batch.items()}
            counts.reset()
        losses.append(trainer.forward_backward(batch)["loss"])
    record = {"launches": counts.launches.total(), "waits": dict(counts.waits)} if counts else {}
    trainer.set_model_mode("eval")
    logits = trainer.model_inference(images.to(trainer.device)).float().cpu()
    return record | {"loss": torch.tensor([float(loss) for loss in losses]), "logits": logits}


def prepared(trainer: Any, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The images of a batch as the loader of the method gives them."""
    method = trainer.method
    if type(method).__name__ == "SkipTuning":
        return method.model.lower_image(images.to(trainer.device)).cpu()
    if type(method).__name__ == "DPC+CoOp":
        method.context_of_run = lambda: method.model.prompt_learner.ctx.detach()
        items = [{"img": image} for image in images.repeat(2, 1, 1, 1)[:CLASSES]]
        source = [Namespace(label=label) for label in range(CLASSES)]
        random.seed(1)
        method.batches(Namespace(dataset=Source(items, source)))
    return images


class Source(list):
    """Images, with the labels of their items in `data_source`."""

    def __init__(self, images: list, data_source: list):
        super().__init__(images)
        self.data_source = data_source


def main(names: list[str]) -> None:
    stepped = [
        name
        for name, method in methods().items()
        if method.learns and not issubclass(method, FeatureMethod)
    ]
    with tempfile.TemporaryDirectory() as folder:
        backbone = f"{folder}/narrow.pt"
        clip = random_clip("ViT-B-16", {"patch_size": 32, "width": 64}, {"width": 64}, 64)
        torch.save(clip.state_dict(), backbone)
        for name in names or stepped:
            with redirect_stdout(sys.stderr):
                expected = steps(name, backbone, "fp32")
            for prec in ("fp32", "fp16", "amp")[: 2 if name == "SkipTuning" else 3]:
                with redirect_stdout(sys.stderr), stand_in() as counts:
                    record = steps(name, backbone, prec, counts)
                for key in ("loss", "logits"):
                    record[key] = (record[key] - expected[key]).abs().max().item()
                print(json.dumps(record | {"method": name, "prec": prec}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
