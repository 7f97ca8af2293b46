"""Seconds of a training step in several precisions; the first one is what the others are compared with.

    python benchmarks/precision_time.py --trainer MPL --classes 5 --prec fp32 bf16 amp

One process has a trainer in each precision, with the fast towers. They take turns, step by step, so that what else the
machine does meets all of them.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import partial
from itertools import product
from pathlib import Path

if __name__ == "__main__":  # the project instead of benchmarks/, so that its packages are found first
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from benchmarks import measuring
from trainers.base.settings import PRECISIONS


def records(args: argparse.Namespace) -> Iterator[dict]:
    """A record for each precision: its median seconds, and the median ratio of the first one's step to its own."""
    for method, classes in product(measuring.chosen(args.trainer), args.classes):
        with redirect_stdout(sys.stderr):
            build = partial(measuring.build, method, classes, args.backbone, batch=args.batch)
            trainers = {prec: build(prec=prec) for prec in args.prec}
        first = trainers[args.prec[0]]
        batch = measuring.random_batch(first, classes, args.batch)
        steps = {prec: partial(trainer.forward_backward, batch) for prec, trainer in trainers.items()}
        for prec, (seconds, ratio) in measuring.compared(steps, args.rounds, first.device).items():
            yield {"trainer": method, "classes": classes, "prec": prec, "s": seconds, "ratio": ratio}


def main(argv: list[str] | None = None) -> None:
    names = ("trainer", "classes", "batch", "rounds", "threads", "backbone", "json")
    parser = measuring.parser(__doc__, *names, classes=[5], rounds=10)
    parser.add_argument("--prec", nargs="+", default=["fp32", "bf16"], choices=PRECISIONS)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    with measuring.backbone_file(args.backbone) as args.backbone:
        measuring.show(records(args), args.json, args.threads)


if __name__ == "__main__":
    main()
