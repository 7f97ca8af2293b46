"""What the programs in this folder share: options, trainers with random weights, timing in turns, and records."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import torch
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from open_clip import IMAGENET_CLASSNAMES

from clip.random_weights import random_clip
from common.start import at_least
from experiments.configs import config_folder
from experiments.configuration import extend_cfg, merge_pairs
from experiments.protocols import recipe
from trainers import methods
from trainers.base.settings import PRECISIONS

OPTIONS: dict[str, dict] = {
    "trainer": {"nargs": "+", "default": ["MPL"], "choices": [*methods(), "all"]},
    "classes": {"type": at_least(1), "nargs": "+", "default": [5, 50, 200]},
    "batch": {"type": at_least(1), "default": 4, "help": "images in a training step"},
    "prec": {"default": "fp32", "choices": PRECISIONS},
    "rounds": {"type": at_least(1), "default": 1, "help": "how often the ways to compare take turns"},
    "seconds": {"type": float, "default": 10, "help": "least time of measuring in one process"},
    "threads": {"type": at_least(1), "default": torch.get_num_threads()},
    "backbone": {"help": "a weight file; by default random weights are written to a temporary one"},
    "json": {"type": Path, "help": "write the records there as well"},
    "worker": {"type": json.loads, "help": argparse.SUPPRESS},  # the settings of `in_processes`
}
STEPS = 3, 15  # at least and at most, in one process
LONG = 60  # seconds after which fewer steps are enough


def parser(doc: str | None, *names: str, **defaults: object) -> argparse.ArgumentParser:
    """A parser with the options of these names, of which some have other defaults."""
    made = argparse.ArgumentParser(description=str(doc).splitlines()[0])
    for name in names:
        made.add_argument(f"--{name}", **OPTIONS[name])
    made.set_defaults(**defaults)
    return made


def learning() -> list[str]:
    """The methods that learn prompts."""
    return [name for name, method in methods().items() if method.learns and method.transfers]


def chosen(trainers: list[str]) -> list[str]:
    return learning() if "all" in trainers else trainers


@contextmanager
def backbone_file(given: str | None, *sizes: object) -> Iterator[str]:
    """The given weight file, or a temporary one of random weights; `sizes` are those of `random_clip`."""
    with TemporaryDirectory() as folder:
        if not given:
            torch.save(random_clip(*(sizes or ("ViT-B-16",))).state_dict(), f"{folder}/random.pt")
        yield given or f"{folder}/random.pt"


def class_names(kind: str, classes: int) -> list[str]:
    """Names of ImageNet classes (`imagenet`), these with a first one of 40 tokens (`long`), or names of four tokens."""
    if kind == "equal":  # each digit is a token
        return [f"kind {number:03d}" for number in range(classes)]
    names = IMAGENET_CLASSNAMES[:classes]
    return ["very " * 39 + "long", *names[1:]] if kind == "long" else names


def build(
    method: str, classes: int, backbone: str, form="fast", prec="fp32", batch=4, names="imagenet", compiled=False
):
    """The trainer, as train.py makes it, on a dataset of nothing but class names.

    Args:
        form: of the towers.
        names: see `class_names`.
        compiled: MODEL.COMPILE.
    """

    @DATASET_REGISTRY.register(force=True)
    class Names(DatasetBase):
        def __init__(self, cfg):
            items = [Datum(label=label, classname=name) for label, name in enumerate(class_names(names, classes))]
            super().__init__(train_x=items * batch, test=items)

    cfg = get_cfg_default()
    extend_cfg(cfg, method)
    cfg.merge_from_file(str(config_folder(method) / f"{recipe(method, 'few_shot', backbone=backbone).cfg}.yaml"))
    merge_pairs(cfg, [])
    cfg.TRAINER.NAME, cfg.DATASET.NAME = method, "Names"
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.TOWERS = backbone, form
    cfg.TRAINER[methods()[method].section()].PREC = prec
    cfg.DATALOADER.NUM_WORKERS, cfg.MODEL.COMPILE = 0, compiled
    trainer = methods()[method](cfg)
    trainer.batch_idx, trainer.num_batches = 0, 10**9
    trainer.set_model_mode("train")
    return trainer


def random_batch(trainer, classes: int, batch: int) -> dict[str, torch.Tensor]:
    """Random images and labels on the trainer's device."""
    images = torch.randn(batch, 3, *trainer.cfg.INPUT.SIZE, device=trainer.device)
    return {"img": images, "label": torch.randint(classes, (batch,), device=trainer.device)}


def timed(function: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def enough(seconds: list[float], least: float) -> bool:
    """Whether there are enough steps: three or more that take `least` seconds together, or fewer in a minute."""
    fewest, most = STEPS
    return len(seconds) >= most or (sum(seconds) >= least and (len(seconds) >= fewest or sum(seconds) >= LONG))


def compared(
    ways: dict[str, Callable[[], object]], rounds: int, device: torch.device, warm_up: bool = True
) -> dict[str, tuple[float, float]]:
    """The median seconds of each way, and the median ratio of the first one's to its own.

    They take turns, so that what else the machine does meets all of them. A first round that warms up is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(warm_up + rounds):
        for name, way in ways.items():
            seconds[name].append(timed(way, device))
    counted = {name: own[warm_up:] for name, own in seconds.items()}
    first, *_ = counted.values()
    ratios = {name: [a / b for a, b in zip(first, own, strict=True)] for name, own in counted.items()}
    return {name: (statistics.median(own), statistics.median(ratios[name])) for name, own in counted.items()}


def in_processes(file: str, settings: dict, variables: Iterable[dict[str, object]] = ({},)) -> dict:
    """What `main` of a program prints for --worker, in a new process for each set of variables; the first one's."""
    command = [sys.executable, file, "--worker", json.dumps(settings)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environments = [os.environ | {name: str(value) for name, value in own.items()} for own in variables]
    processes = [subprocess.Popen(command, env=environment, **pipes) for environment in environments]
    printed = [process.communicate() for process in processes]
    if any(process.returncode for process in processes):
        lines = [line for _, errors in printed for line in errors.strip().splitlines()]
        sys.exit(f"error: {settings}: {lines[-1] if lines else 'no reason was given'}")
    return json.loads(printed[0][0].splitlines()[-1])


def main(args: argparse.Namespace, work: Callable[[SimpleNamespace], dict | None], records: Callable) -> None:
    """Measure in this process if it is one of `in_processes`, else print the records."""
    if args.worker:
        torch.set_num_threads(args.worker["threads"])
        torch.manual_seed(0)
        print(json.dumps(work(SimpleNamespace(**args.worker))))
    else:
        with backbone_file(args.backbone) as args.backbone:
            show(records(args), args.json, args.threads)


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
