"""Run all benchmarks, and write their numbers with the machine and the commit to one page: `make bench`.

    python benchmarks/dashboard.py --only views --page views.md

The page is rewritten after each benchmark, so that a stopped program keeps its numbers. Each benchmark is a
program of this folder in a process of its own. Times mean something on an idle machine only; the ratios are of ways
that are measured in turns, and are less sensitive.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

if __name__ == "__main__":  # the project instead of benchmarks/, so that its packages are found first
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from benchmarks import measuring
from common.files import write_text
from common.start import ROOT, at_least
from common.version import source

PAGE = ROOT / "benchmarks/RESULTS.md"


class Benchmark(NamedTuple):
    """The title of a section, a program of this folder with its options, and what the columns are."""

    title: str
    command: str
    note: str


STEP = "step_time.py --seconds 3 --classes 50 --trainer"
FORMS = "*fast* is the default form of the towers, *plain* that of the published code; *ratio* is the first row's time"
FORMS += " divided by this one's, *mb* the memory that a step needs beyond weights and prompts."
PRECISIONS = "*ratio* is fp32's time divided by this one's."
PREDICT = "`tools/predict.py` with files of 256 x 256 pixels, and open_clip's `encode_image` of images in memory."
VIEWS = "One test image with 64 views; *ratio* is the published loop's time divided by ours."
FILE = "A test pass of the small CLIP without and with predictions.npz, and the bytes of the file."
LAUNCHES = (
    "Counted on a stand-in CUDA device with 50 classes: operations of a step, and how often the CPU waits for the"
)
LAUNCHES += " device. *loss* and *logits* are the largest differences from fp32 on the CPU, with random narrow weights."
BENCHMARKS = {
    "step": Benchmark("A training step of MPL", "step_time.py --seconds 3 --trainer MPL --classes 5 50 200", FORMS),
    "methods": Benchmark("A training step of other methods", f"{STEP} CoOp MaPLe PromptSRC CoCoOp", FORMS),
    "adapters": Benchmark("Adapters, a plug-in, patches", f"{STEP} CLIPLoRA MMA DePT+MaPLe LoCoOp", FORMS),
    "precision": Benchmark("Precisions", f"{STEP} MPL --form fast --prec fp32 bf16 amp", PRECISIONS),
    "test": Benchmark("A test batch", f"{STEP} MPL --what test_batch --test-batch 20", FORMS),
    "predict": Benchmark("Prediction", "predict_time.py --images 60", PREDICT),
    "views": Benchmark("Views of an image", "views_time.py --classes 100", VIEWS),
    "predictions": Benchmark("Predictions of a test", "predictions_time.py --dataset small_land", FILE),
    "launches": Benchmark("Launches of a step on a GPU", "gpu_rehearsal.py", LAUNCHES),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", default=list(BENCHMARKS), choices=BENCHMARKS)
    parser.add_argument("--rounds", type=at_least(1), default=3, help="how often the ways to compare take turns")
    parser.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args(argv)
    found = source()
    commit = f"commit {(found['commit'] or 'unknown')[:12]}{', changed' if found['dirty'] else ''}"
    sections = [f"# Measured times\n\n{measuring.machine(torch.get_num_threads())}, {commit}."]
    sections[0] += " Weights are random, of ViT-B/16's size, unless a section says otherwise."
    sections[0] += " `make bench` measures again and replaces this page."
    for name in args.only:
        print(f"{name}: {BENCHMARKS[name].command}", flush=True)
        sections.append(section(BENCHMARKS[name], args.rounds))
        write_text(args.page, "\n\n".join(sections) + "\n")
    print(f"written: {args.page}")


def section(benchmark: Benchmark, rounds: int) -> str:
    """The section of a benchmark, with its table or the reason for which it has none."""
    program, *options = shlex.split(benchmark.command)
    if program != "gpu_rehearsal.py":  # it counts, once
        options += ["--rounds", str(rounds)]
    with TemporaryDirectory() as folder:
        records = Path(folder) / "records.json"
        command = [sys.executable, str(ROOT / "benchmarks" / program), *options, "--json", str(records)]
        ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if ended.returncode:
            table = f"Not measured: {(ended.stderr.strip() or f'status {ended.returncode}').splitlines()[-1]}"
        else:
            table = measuring.table(json.loads(records.read_text()))
    heading = f"## {benchmark.title}\n\n`python benchmarks/{shlex.join([program, *options])}`"
    return f"{heading}. {benchmark.note}\n\n{table}"


if __name__ == "__main__":
    main()
