"""Shared by the programs in this folder: options, trainers with random weights, timing in turns, and tables."""

import argparse
import json
import platform
import statistics
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from open_clip import IMAGENET_CLASSNAMES

from benchmarks.one_step import timed as timed
from benchmarks.published import as_published
from clip.random_weights import random_clip
from common.start import at_least
from experiments.configs import config_folder
from experiments.configuration import extend_cfg, merge_pairs
from experiments.protocols import recipe
from trainers import methods
from trainers.base.feature_trainer import FeatureTrainer


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the options of every program here."""
    made = argparse.ArgumentParser(description=str(doc).splitlines()[0])
    made.add_argument("--rounds", type=at_least(1), default=3, help="how often the ways to compare take turns")
    made.add_argument("--threads", type=at_least(1), default=torch.get_num_threads())
    made.add_argument("--json", type=Path, help="write the records there as well")
    return made


def learning() -> list[str]:
    """The methods that learn prompts."""
    return [name for name, method in methods().items() if method.learns and method.transfers]


def stepped() -> list[str]:
    """The methods whose steps go through the towers."""
    return [name for name in learning() if not issubclass(methods()[name], FeatureTrainer)]


@contextmanager
def backbone_file(given: str | None, arch: str = "ViT-B-16") -> Iterator[str]:
    """The given weight file, or a temporary one of random weights."""
    with TemporaryDirectory() as folder:
        if not given:
            torch.save(random_clip(arch).state_dict(), f"{folder}/random.pt")
        yield given or f"{folder}/random.pt"


def build(method: str, classes: int, backbone: str, form="fast", prec="fp32", batch=4, compiled=False, graphs=False):
    """The trainer, as train.py makes it, on a dataset of class names without images.

    Args:
        form: of the towers; `published` is the plain form with what the published code computes besides.
        compiled, graphs: MODEL.COMPILE, MODEL.CUDA_GRAPHS.
    """

    @DATASET_REGISTRY.register(force=True)
    class Names(DatasetBase):
        def __init__(self, cfg):
            names = IMAGENET_CLASSNAMES[:classes]
            items = [Datum(label=label, classname=name) for label, name in enumerate(names)]
            super().__init__(train_x=items * batch, test=items)

    cfg = get_cfg_default()
    extend_cfg(cfg, method)
    settings = recipe(method, "few_shot", backbone=backbone)
    cfg.merge_from_file(str(config_folder(method) / f"{settings.cfg}.yaml"))
    merge_pairs(cfg, list(settings.settings))
    cfg.TRAINER.NAME, cfg.DATASET.NAME, cfg.SEED = method, "Names", 1
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.TOWERS = backbone, "plain" if form == "published" else form
    cfg.TRAINER[methods()[method].section()].PREC = prec
    cfg.DATALOADER.NUM_WORKERS, cfg.MODEL.COMPILE, cfg.MODEL.CUDA_GRAPHS = 0, compiled, graphs
    trainer = methods()[method](cfg)
    if form == "published":
        as_published(trainer.model)
    trainer.batch_idx, trainer.num_batches = 0, 10**9
    trainer.set_model_mode("train")
    return trainer


def in_turns(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, tuple[float, float]]:
    """Measure each way once in every round, so that other processes of the machine slow down all ways.

    Args:
        ways: functions that return seconds.

    Returns:
        For each way its median seconds, and the median ratio of the first way's seconds to its own.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
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
    rows = [columns, ["---"] * len(columns), *([shown(record.get(key, "")) for key in columns] for record in records)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def machine(threads: int) -> str:
    """The day and the machine, for the line above a table."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()}, {threads} threads"
    return f"{date.today()}, {device}, torch {torch.__version__}"


def loss_after(trainer, batch: dict[str, torch.Tensor], steps: int) -> float:
    """The loss of the last of some training steps; dropout is the same in every call."""
    torch.manual_seed(0)
    return [float(trainer.forward_backward(batch)["loss"]) for _ in range(steps)][-1]


def gradients(trainer, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and the gradient of all learned parameters, in one vector; dropout is the same in every call."""
    torch.manual_seed(0)
    with trainer.autocast():
        images, labels = trainer.parse_batch_train(batch)
        output = trainer.model.output(images)
        loss, logits = trainer.loss(output, labels)[0], output.logits
    loss.backward()
    found = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    result = logits.detach().float(), torch.cat([gradient.flatten() for gradient in found])
    trainer.model.zero_grad()
    return result
