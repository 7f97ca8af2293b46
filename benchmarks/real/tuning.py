"""Fine-tuning of the image tower beside heads on its features, on the same images: `python -m
benchmarks.real.tuning --sources DIR --output DIR`.

The data sets, encoders and draws are those of `benchmarks.real`. tuning.jsonl has a line for each
draw, so that the same command resumes. `--table` prints means with their standard errors.
"""

import os
import shutil
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pandas import DataFrame

from benchmarks.fits import RESUMES, Record, grid, markdown, of_each_class, run, shown
from common.results import RunResult, read_results
from configs.files import CONFIGS
from fit.candidates import ZERO_SHOT
from runs.arguments import parse_arguments
from runs.run import train_and_test
from runs.run_spec import RunSpec
from runs.session import run_command

from .__main__ import measured
from .data import SMALL, data_for, images_in, parser

# Of an EfficientNet-Lite; the rates are the best of five pairs on a draw of openclipart or stamps
SETTINGS = (
    "INPUT.SIZE", "(224, 224)", "OPTIM.MAX_EPOCH", "10",
    "OPTIM.LR", "0.001", "TRAINER.FINETUNE.TOWER_RATE", "0.1",
)  # fmt: skip
ROWS = ["FineTune", "heads", ZERO_SHOT]


def tuned(folder: Path, encoder: str, shots: int, seed: int, output: Path) -> Record:
    """Accuracy and seconds of FineTune on a draw of the images in a folder of `images.build`."""
    paths = images_in(folder / "train")
    labels = np.array([path.parent.name for path in paths])
    root = output / "images"
    shutil.copytree(folder / "test", root / "test", copy_function=os.link)
    for place in of_each_class(labels, shots, np.random.default_rng([seed, shots])):
        link(paths[place], root / paths[place].relative_to(folder))
    words = ["--root", root, "--output-dir", output / "run", "--seed", seed, "--quiet"]
    words += ["--trainer", "FineTune", "--backbone", encoder]
    words += ["--config-file", CONFIGS / "trainers/FineTune/small.yaml"]
    words += ["--dataset-config-file", CONFIGS / "datasets/image_folder.yaml"]
    # Of openclipart some drawings are in both parts
    words += ["DATASET.NUM_SHOTS", shots, "TEST.SELECT_ON_TEST", True]
    words += SETTINGS if encoder != SMALL else ()
    results = learned(words, output / "run")
    return {"FineTune": results.accuracy, "seconds": results.train_seconds}


def link(file: Path, copy: Path) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    os.link(file, copy)


def learned(words: list[Any], folder: Path) -> RunResult:
    """The results of a run, in its output folder."""
    spec = RunSpec(parse_arguments(list(map(str, words))))
    spec.check()
    train_and_test(spec)
    results = read_results(folder)
    assert results is not None
    return results


def cell(args: Namespace, set: str, encoder: str, shots: int, seed: int) -> Record:
    """The accuracies of FineTune, of the heads that a fit chooses, and of zero-shot CLIP."""
    heads = measured(data_for(args, set, encoder), shots, seed, 0, args.methods)
    found = {"heads": heads["fit"], ZERO_SHOT: heads["singles"][ZERO_SHOT]}
    found["seconds_heads"] = heads["seconds"]
    backbone = encoder if encoder == SMALL else str(args.output / "encoders" / encoder)
    folder = args.output / "tuning" / f"{set}_{encoder}_{shots}_{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    found |= tuned(args.output / "sets" / set, backbone, shots, seed, folder)
    shutil.rmtree(folder)
    return found


def table(records: DataFrame) -> Iterator[str]:
    """A row for each data set, encoder and number of images."""
    groups = records.groupby(["set", "encoder", "shots"], sort=False)
    rows = groups[ROWS].agg(shown)
    rows.insert(0, "draws", groups.size())
    yield markdown(rows.assign(seconds=groups["seconds"].median().round()).reset_index())


def main() -> None:
    options = parser(__doc__, sets=["stamps", "emoji"], encoders=["lite2"], shots=[4, 16])
    args = options.parse_args()
    places = grid(seed=args.seeds, set=args.sets, encoder=args.encoders, shots=args.shots)
    run(args, "tuning.jsonl", places, cell, table)


if __name__ == "__main__":
    run_command(main, RESUMES)
