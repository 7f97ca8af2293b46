"""Seconds and memory of a training step on one and on several ranks, on the same cores or on a GPU for each rank.

    python benchmarks/ranks_time.py --trainer MPL --classes 50 200 500 --ranks 1 2 --json ranks_time.json

The numbers of ranks take turns, in new processes, on random weights of ViT-B/16's size and random images. On a CPU
the ranks divide the threads: `--threads 2` compares one process of two threads with two ranks of one. The memory is
that of a rank during a step, beyond what it holds before (weights, prompts, libraries).
"""

import argparse
import socket
import statistics
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace

if __name__ == "__main__":  # the project instead of benchmarks/, so that its packages are found first
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from benchmarks import measuring
from clip import current_ranks
from experiments.ranks import joined
from trainers.base.ranks import split


def work(args: SimpleNamespace) -> dict | None:
    """Measure in this process, one of the ranks; rank 0 returns the median seconds and the largest memory of a rank."""
    with joined():
        ranks = current_ranks()
        trainer = measuring.build(args.trainer, args.classes, args.backbone, prec=args.prec, batch=args.batch)
        split(trainer, ranks)
        batch, device = measuring.random_batch(trainer, args.classes, args.batch), trainer.device
        before = peak(device)
        trainer.forward_backward(batch)  # a warm-up, which also computes what is computed once in a run
        memory = ranks.objects(peak(device, reset=False) - before)
        seconds: list[float] = []
        while not ranks.from_first(lambda: measuring.enough(seconds, args.seconds)):
            seconds.append(measuring.timed(lambda: trainer.forward_backward(batch), device))
        return {"seconds": statistics.median(seconds), "mb": max(memory) / 2**20} if ranks.first else None


def peak(device: torch.device, reset: bool = True) -> int:
    """The largest memory of the process (as Linux counts) or on the GPU since the last reset, in bytes.

    Args:
        device: of the model.
        reset: count from now on.
    """
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    (line,) = (each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def records(args: argparse.Namespace) -> Iterator[dict]:
    for trainer, classes in product(measuring.chosen(args.trainer), args.classes):
        runs = [(count, measure(args, trainer, classes, count)) for _ in range(args.rounds) for count in args.ranks]
        for count in args.ranks:
            found = [run for ranks, run in runs if ranks == count]
            medians = {key: statistics.median(run[key] for run in found) for key in ("seconds", "mb")}
            yield {"trainer": trainer, "classes": classes, "ranks": count, **medians}


def measure(args: argparse.Namespace, trainer: str, classes: int, ranks: int) -> dict:
    """`work` in new processes."""
    settings = {name: getattr(args, name) for name in ("batch", "prec", "seconds", "backbone")}
    settings |= {"trainer": trainer, "classes": classes, "threads": max(1, args.threads // ranks)}
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return measuring.in_processes(__file__, settings, [common | {"RANK": n, "LOCAL_RANK": n} for n in range(ranks)])


def main() -> None:
    names = ("trainer", "classes", "batch", "prec", "rounds", "seconds", "threads", "backbone", "json", "worker")
    parser = measuring.parser(__doc__, *names, classes=[50, 200, 500])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    measuring.main(args, work, records)


if __name__ == "__main__":
    main()
