"""Seconds of a training step in several precisions; the first one is what the others are compared with.

    python benchmarks/precision_time.py --trainer MPL --classes 5 --prec fp32 bf16 amp

One process has a trainer in each precision, with the fast towers. They take turns, step by step, so that what else the
machine does meets all of them.
"""

import argparse
import json
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

if __name__ == "__main__":  # the project in place of benchmarks/, so that its packages are found first
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from common.start import required_packages

with required_packages():
    import torch

    from benchmarks import step_time
    from clip.random_weights import random_clip
    from trainers import methods
    from trainers.settings import PRECISIONS


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trainer", nargs="+", default=["MPL"], choices=list(methods()))
    parser.add_argument("--classes", type=int, nargs="+", default=[5])
    parser.add_argument("--prec", nargs="+", default=["fp32", "bf16"], choices=PRECISIONS)
    parser.add_argument("--batch", type=int, default=4, help="images in a training step")
    parser.add_argument("--rounds", type=int, default=10, help="steps in each precision")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--backbone", help="a weight file; by default random weights are written to a temporary one")
    parser.add_argument("--json", type=Path, help="write the records there as well")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    records = []
    with tempfile.TemporaryDirectory() as folder:
        if not args.backbone:
            args.backbone = f"{folder}/vit_b16.pt"
            torch.save(random_clip("ViT-B-16").state_dict(), args.backbone)
        print("| trainer | classes | prec | s | ratio |\n| --- | --- | --- | --- | --- |")
        for trainer in args.trainer:
            for classes in args.classes:
                for record in measure(args, trainer, classes):
                    records.append(record)
                    print("| {trainer} | {classes} | {prec} | {s:.3f} | {ratio:.2f} |".format(**record), flush=True)
    if args.json:
        args.json.write_text(json.dumps(records, indent=1) + "\n")


def measure(args: argparse.Namespace, trainer: str, classes: int) -> list[dict]:
    """A record for each precision: its median seconds, and the median ratio of the first one's step to its own."""
    built = {}
    for prec in args.prec:
        how = {"trainer": trainer, "worker": "fast", "prec": prec, "names": "imagenet"}
        with redirect_stdout(sys.stderr):
            built[prec] = step_time.build(argparse.Namespace(**vars(args) | how), classes)
        built[prec].set_model_mode("train")
    first = built[args.prec[0]]
    images = torch.randn(args.batch, 3, *first.cfg.INPUT.SIZE, device=first.device)
    batch = {"img": images, "label": torch.randint(classes, (args.batch,), device=first.device)}
    steps = {prec: lambda method=method: method.forward_backward(batch) for prec, method in built.items()}
    return [
        {"trainer": trainer, "classes": classes, "prec": prec, "s": seconds, "ratio": ratio}
        for prec, (seconds, ratio) in step_time.compared(steps, args.rounds, first.device).items()
    ]


if __name__ == "__main__":
    main()
