"""Fine-tuning of the image tower beside heads on its features, on the same images: `python -m
benchmarks.real.tuning --sources DIR --output DIR`.

The data sets, encoders and draws are those of `benchmarks.real`. tuning.jsonl has a line for each
draw, so that the same command resumes. `--table` prints means with their standard errors.
"""

import os
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.fits import Data, Record, measure_each, of_each_class, read_records
from configs.files import CONFIGS
from fit.candidates import ZERO_SHOT
from measures.results import read_results
from runs.arguments import parse_arguments
from runs.run import train_and_test
from runs.run_spec import RunSpec

from .__main__ import cell
from .data import SMALL, images_in, loaded
from .options import parser

# Of an EfficientNet-Lite; the rates are the best of five pairs on a draw of openclipart or stamps
SETTINGS = (
    "INPUT.SIZE", "(224, 224)", "OPTIM.MAX_EPOCH", "10",
    "OPTIM.LR", "0.001", "TRAINER.FINETUNE.TOWER_RATE", "0.1",
)  # fmt: skip
ROWS = "FineTune", "heads", ZERO_SHOT


def tuned(folder: Path, encoder: str, shots: int, seed: int, output: Path) -> Record:
    """Accuracy and seconds of FineTune on a draw of the images in a folder of `images.build`."""
    paths = images_in(folder / "train")
    labels = np.array([path.parent.name for path in paths])
    root = output / "images"
    shutil.rmtree(root, ignore_errors=True)
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
    return {"FineTune": results["accuracy"], "seconds": results["train_seconds"]}


def link(file: Path, copy: Path) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    os.link(file, copy)


def learned(words: list[Any], folder: Path) -> Record:
    """The results of a run, in its output folder."""
    spec = RunSpec(parse_arguments(list(map(str, words))))
    spec.check()
    train_and_test(spec)
    results = read_results(folder)
    assert results is not None
    return results


def record(data: Data, one: Record, output: Path) -> Record:
    """The accuracies of FineTune, of the heads that a fit chooses, and of zero-shot CLIP."""
    shots, seed = one["shots"], one["seed"]
    heads = cell(data, shots, seed, 0, ())
    found = {"heads": heads["fit"], ZERO_SHOT: heads["singles"][ZERO_SHOT]}
    found["seconds_heads"] = heads["seconds"]
    name = one["encoder"]
    encoder = name if name == SMALL else str(output / "encoders" / name)
    folder = output / "sets" / one["set"]
    run = output / "tuning" / "_".join(map(str, one.values()))
    shutil.rmtree(run, ignore_errors=True)
    found |= tuned(folder, encoder, shots, seed, run)
    shutil.rmtree(run)
    return found


def table(records: list[Record]) -> Iterator[str]:
    """A row for each data set, encoder and number of images."""
    yield f"| data set | encoder | images | draws | {' | '.join(ROWS)} | seconds |"
    yield f"{'| --- ' * (len(ROWS) + 5)}|"
    for place in dict.fromkeys((one["set"], one["encoder"], one["shots"]) for one in records):
        here = [one for one in records if (one["set"], one["encoder"], one["shots"]) == place]
        cells = [shown(np.array([one[name] for one in here])) for name in ROWS]
        seconds = np.median([one["seconds"] for one in here])
        yield f"| {' | '.join(map(str, [*place, len(here), *cells, round(seconds)]))} |"


def shown(values: np.ndarray) -> str:
    """Their mean and its standard error."""
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{values.mean():.1f} ± {error:.1f}"


def main() -> None:
    args = parser(__doc__, sets=["stamps", "emoji"], encoders=["lite2"], shots=[4, 16]).parse_args()
    file = args.output / "tuning.jsonl"
    if args.table:
        print("\n".join(table(read_records(file))))
        return

    def measured(place: Record) -> Record:
        data = loaded(place["set"], place["encoder"], tuple(args.sources), args.output)
        return record(data, place, args.output)

    places = [
        {"set": name, "encoder": encoder, "shots": shots, "seed": seed}
        for seed, name, encoder, shots in product(args.seeds, args.sets, args.encoders, args.shots)
    ]
    torch.set_num_threads(1)
    measure_each(file, places, measured)


if __name__ == "__main__":
    main()
