"""Shared by the programs in this folder: options, trainers with random weights, timing in turns, and tables."""

import argparse
import json
import platform
import statistics
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from dassl.config import get_cfg_default
from torch import Tensor

from benchmarks.official import ready
from benchmarks.official import timed as timed
from clip import CLIP, load_backbone
from clip.random_weights import random_clip
from common.start import at_least
from experiments.configs import config_folder
from experiments.configuration import extend_cfg
from experiments.protocols import recipe
from trainers import methods
from trainers.base.feature_trainer import FeatureTrainer
from trainers.base.lora import LoRA, LowRank

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def parser(doc: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with the options of every program that measures in turns."""
    made = argparse.ArgumentParser(description=str(doc).splitlines()[0])
    made.add_argument("--rounds", type=at_least(1), default=3, help="how often the ways to compare take turns")
    made.add_argument("--threads", type=at_least(1), default=torch.get_num_threads())
    made.add_argument("--json", type=Path, help="write the records there as well")
    made.set_defaults(**{"arch": "ViT-B-16", "backbone": ""} | defaults)
    return made


def run(
    args: argparse.Namespace, records: Callable[[argparse.Namespace], Iterable[dict]], clip: CLIP | None = None
) -> None:
    """Show the records; without `args.backbone` they are of a temporary file of random weights, those of `clip`."""
    torch.set_num_threads(args.threads)
    with TemporaryDirectory() as folder:
        if not args.backbone:
            args.backbone = f"{folder}/random.pt"
            torch.save((clip or random_clip(args.arch)).state_dict(), args.backbone)
        show(records(args), args.json, args.threads)


def learning(through_towers: bool = False) -> list[str]:
    """The methods that learn prompts: all, or those whose steps go through the towers."""
    found = {name: method for name, method in methods().items() if method.learns and method.transfers}
    return [name for name, each in found.items() if not (through_towers and issubclass(each, FeatureTrainer))]


def narrow_clip(patch_size: int) -> CLIP:
    """A narrow CLIP of ViT-B/16's depth, with random weights."""
    return random_clip("ViT-B-16", {"patch_size": patch_size, "width": 64}, {"width": 64}, 64)


def bare_clip(args: argparse.Namespace) -> tuple[Any, tuple[int, int]]:
    """open_clip's own model with the weights of `args.backbone`, on the device, and the size of its images."""
    model = open_clip.create_model(args.arch, force_quick_gelu=True).eval().requires_grad_(False)
    model.load_state_dict(load_backbone(args.backbone).state_dict())
    size = model.visual.image_size
    return model.to(DEVICE), size if isinstance(size, tuple) else (size, size)


def build(method: str, classes: int, backbone: str, form="fast", prec="fp32", batch=4, compiled=False, graphs=False):
    """The trainer, as train.py makes it, on a dataset of class names without images.

    `compiled` and `graphs` are MODEL.COMPILE and MODEL.CUDA_GRAPHS. The form of the towers `published` is the plain one
    with what the published code computes besides.
    """
    cfg = get_cfg_default()
    extend_cfg(cfg, method)
    settings = recipe(method, "few_shot", backbone=backbone)
    cfg.merge_from_file(str(config_folder(method) / f"{settings.cfg}.yaml"))
    cfg.merge_from_list(list(settings.settings))
    cfg.MODEL.BACKBONE.TOWERS = "plain" if form == "published" else form
    cfg.MODEL.COMPILE, cfg.MODEL.CUDA_GRAPHS = compiled, graphs
    trainer = ready(cfg, method, methods()[method].section(), prec, backbone, classes, batch)
    if form == "published":
        for module in trainer.model.modules():
            if type(module) in AS_PUBLISHED:  # it computes the same as before, up to rounding and other masks
                module.__class__ = AS_PUBLISHED[type(module)]
    return trainer


class Products(LowRank):
    """CLIP-LoRA multiplies B A first, so each branch costs as much as the frozen map that it adds to."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.w_lora_B @ self.w_lora_A).T


class Separate(LoRA):
    """Each branch by itself, with torch's dropout."""

    def dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)

    def attention_input(self, x: Tensor) -> Tensor:
        branches = (self.get_submodule(f"{part}_proj")(self.dropped(x)) for part in "qkv")
        return self.scale * torch.cat(list(branches), dim=-1)


AS_PUBLISHED: dict[type, type] = {LowRank: Products, LoRA: Separate}


def in_turns(ways: dict[Any, Callable[[], float]], rounds: int) -> dict[Any, tuple[float, float]]:
    """For each way, a function that returns seconds: their median, and the median ratio of the first way's to its own.

    Each way is measured once in every round, so that other processes of the machine slow down all ways.
    """
    seconds: dict[Any, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(way())
    first = next(iter(seconds.values()))
    ratios = {name: [a / b for a, b in zip(first, own, strict=True)] for name, own in seconds.items()}
    return {name: (statistics.median(own), statistics.median(ratios[name])) for name, own in seconds.items()}


def show(records: Iterable[dict], file: Path | None, threads: int) -> None:
    """Print the records as they come, as rows of a Markdown table below the machine, and write them to a file."""
    known: list[dict] = []
    print(machine(threads), end="\n\n")
    for record in records:
        known.append(record)
        print("\n".join(table(known).splitlines()[0 if len(known) == 1 else -1 :]), flush=True)
        if file:
            file.write_text(json.dumps(known, indent=1) + "\n")


def table(records: list[dict]) -> str:
    """A Markdown table of records."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    cells = ([record.get(key, "") for key in columns] for record in records)
    shown = ([f"{value:.4g}" if isinstance(value, float) else str(value) for value in row] for row in cells)
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *shown))


def machine(threads: int) -> str:
    """The day and the machine, for the line above a table."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()}, {threads} threads"
    return f"{date.today()}, {device}, torch {torch.__version__}"
