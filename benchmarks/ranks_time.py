"""Seconds and memory of a training step on one and on several ranks, on the same cores or on a GPU for each rank.

    python benchmarks/ranks_time.py --trainer MPL --classes 50 200 500 --ranks 1 2 --json ranks_time.json

The numbers of ranks take turns, in fresh processes, on random weights of ViT-B/16's size and random images. On a CPU
the ranks divide the threads: `--threads 2` compares one process of two threads with two ranks of one. The memory is
that of a rank during a step, beyond what it holds before (weights, prompts, libraries).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":  # the project in place of benchmarks/, so that its packages are found first
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from common.start import required_packages

with required_packages():
    import torch

    from benchmarks.step_time import build, enough, timed
    from clip import current_ranks
    from experiments.ranks import joined
    from experiments.studies.group import free_port
    from trainers import methods
    from trainers.ranks import split


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trainer", default="MPL", choices=methods())
    parser.add_argument("--classes", type=int, nargs="+", default=[50, 200, 500])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=4, help="images in a training step")
    parser.add_argument("--prec", default="fp32", choices=["fp32", "fp16", "bf16", "amp"])
    parser.add_argument("--rounds", type=int, default=1, help="how often the numbers of ranks take turns")
    parser.add_argument("--seconds", type=float, default=10, help="least time of measuring in one process")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of all ranks together")
    parser.add_argument("--backbone", help="a weight file; by default random weights are written to a temporary one")
    parser.add_argument("--json", type=Path, help="write the records there as well")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(names="imagenet")
    return parser.parse_args()


def work(args: argparse.Namespace) -> dict | None:
    """Measure in this process, one of the ranks; rank 0 returns the median seconds and the largest memory of a rank."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    with joined():
        ranks = current_ranks()
        trainer = build(argparse.Namespace(**vars(args) | {"worker": "fast"}), args.classes[0])
        split(trainer, ranks)
        device, size = trainer.device, trainer.cfg.INPUT.SIZE
        images = torch.randn(args.batch, 3, *size, device=device)
        labels = torch.randint(args.classes[0], (args.batch,), device=device)
        batch = {"img": images, "label": labels}
        trainer.set_model_mode("train")
        before = peak(device)
        trainer.forward_backward(batch)  # a warm-up, which also computes what is computed once in a run
        memory = ranks.objects(peak(device, reset=False) - before)
        seconds: list[float] = []
        while not ranks.from_first(lambda: enough(seconds, args.seconds)):
            seconds.append(timed(lambda: trainer.forward_backward(batch), device))
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


def measure(args: argparse.Namespace, classes: int, ranks: int) -> dict:
    """`work` in fresh processes."""
    options = {name: getattr(args, name) for name in ("trainer", "batch", "prec", "seconds", "backbone")}
    options |= {"classes": classes, "threads": max(1, args.threads // ranks)}
    command = [sys.executable, __file__, "--worker", *(f"--{name}={value}" for name, value in options.items())]
    common = {"WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    processes = []
    for rank in range(ranks):
        env = os.environ | {name: str(value) for name, value in (common | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        processes.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    printed = [process.communicate() for process in processes]
    if any(process.returncode for process in processes):
        lines = [line for _, errors in printed for line in errors.strip().splitlines()]
        sys.exit(f"error: {ranks} ranks, {classes} classes: {lines[-1] if lines else 'no reason was given'}")
    return json.loads(printed[0][0].splitlines()[-1])


def main() -> None:
    args = parse_arguments()
    if args.worker:
        print(json.dumps(work(args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if not args.backbone:
            from clip.random_weights import random_clip

            args.backbone = f"{folder}/vit_b16.pt"
            torch.save(random_clip("ViT-B-16").state_dict(), args.backbone)
        print(f"{args.trainer}, batch {args.batch}, {args.prec}, {args.threads} threads, torch {torch.__version__}")
        print("".join(f"{column:>10}" for column in ("classes", "ranks", "seconds", "MB")))
        records = []
        for classes in args.classes:
            runs = [(ranks, measure(args, classes, ranks)) for _ in range(args.rounds) for ranks in args.ranks]
            for ranks in args.ranks:
                found = [run for count, run in runs if count == ranks]
                median = {key: statistics.median(run[key] for run in found) for key in ("seconds", "mb")}
                records.append({"trainer": args.trainer, "classes": classes, "ranks": ranks, **median})
                print(f"{classes:>10}{ranks:>10}{median['seconds']:>10.3f}{median['mb']:>10.0f}", flush=True)
                if args.json:
                    args.json.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
