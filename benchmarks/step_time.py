"""Seconds and memory of a training step and a test batch, in the fast and the plain form of the towers.

    python benchmarks/step_time.py --trainer MPL --classes 5 50 200 --batch 4 --json step_time.json

The two forms run in turn, each time in a new process, on random weights of ViT-B/16's size and random images, under
the paper's settings of the method (with `--backbone small`, those of its small.yaml). Reported is the median of the
steps, of which there are fewer the longer they take.
`matmul_share` is how much of the machine's own speed the fast form reaches: the floating-point operations that it needs
(torch's counter), over its time, over the speed of a product of two 2048 x 2048 matrices measured in the same process.
"""

import argparse
import resource
import statistics
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace

if __name__ == "__main__":  # the project instead of benchmarks/, so that its packages are found first
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from benchmarks import measuring
from trainers import methods

FORMS = ("fast", "plain")
PASSED_ON = ("backbone", "names", "batch", "test_batch", "test_batches", "prec", "seconds", "threads")


def work(args: SimpleNamespace) -> dict:
    """Measure one form, in this process: median seconds, peak memory, operations, speed of the machine."""
    trainer = measuring.build(args.trainer, args.classes, args.backbone, args.form, args.prec, args.batch, args.names)
    trains, device = args.what == "train_step", trainer.device
    batch, batches = (args.batch, 1) if trains else (args.test_batch, args.test_batches)
    data = measuring.random_batch(trainer, args.classes, max(2, batch))

    def step(batch: int = batch, batches: int = batches) -> None:
        if trains:
            trainer.forward_backward({key: values[:batch] for key, values in data.items()})
            return
        trainer.set_model_mode("eval")  # a new evaluation
        for _ in range(batches):
            trainer.model_inference(data["img"][:batch])

    step(1, 1)  # a warm-up, which also computes what is computed once in a run
    # Only the fast form's operations are asked for. What images need grows with their number, the rest is constant.
    one, two = (operations(step, count) if args.form == "fast" else 0 for count in (1, 2))
    seconds: list[float] = []
    while not measuring.enough(seconds, args.seconds):
        seconds.append(measuring.timed(step, device))
    on_gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": statistics.median(seconds),
        "peak_mb": peak / 2**20,
        "flop": one + (two - one) * (batch * batches - 1),
        "flop_per_second": matmul_speed(device, args.prec),
    }


def operations(step: Callable[[int, int], None], images: int) -> int:
    """Floating-point operations of a step with one batch of `images` images."""
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # which torch's counter leaves out
    attention_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    formulas = {
        attention: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        attention_backward: lambda gradient, q, k, v, *_, **__: sdpa_backward_flop_count(gradient, q, k, v),
    }
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        step(images, 1)
    return counter.get_total_flops()


def matmul_speed(device: torch.device, prec: str) -> float:
    """Floating-point operations a second of a 2048 x 2048 product in the type that `prec` multiplies in."""
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    dtype = torch.float32 if prec == "fp32" or (prec == "fp16" and device.type == "cpu") else half
    a, b = (torch.randn(2048, 2048, device=device).to(dtype) for _ in range(2))
    a @ b
    return 2 * 2048**3 / statistics.median(measuring.timed(lambda: a @ b, device) for _ in range(15))


def records(args: argparse.Namespace) -> Iterator[dict]:
    for trainer, classes, what in product(measuring.chosen(args.trainer), args.classes, args.what):
        if what == "test_batch" or methods()[trainer].learns:
            yield measure(args, trainer, classes, what)


def measure(args: argparse.Namespace, trainer: str, classes: int, what: str) -> dict:
    """Both forms in turn, in new processes, as one record."""
    settings = {name: getattr(args, name) for name in PASSED_ON} | {
        "trainer": trainer,
        "classes": classes,
        "what": what,
    }
    runs = [
        {form: measuring.in_processes(__file__, settings | {"form": form}) for form in FORMS}
        for _ in range(args.rounds)
    ]
    fast, plain = ({key: statistics.median(run[form][key] for run in runs) for key in runs[0][form]} for form in FORMS)
    return {
        "trainer": trainer,
        "classes": classes,
        "batch": args.batch if what == "train_step" else args.test_batch,
        "prec": args.prec,
        "what": what,
        "plain_s": plain["seconds"],
        "fast_s": fast["seconds"],
        "ratio": plain["seconds"] / fast["seconds"],
        "plain_peak_mb": plain["peak_mb"],
        "fast_peak_mb": fast["peak_mb"],
        "matmul_share": fast["flop"] / fast["seconds"] / fast["flop_per_second"],
    }


def main() -> None:
    names = ("trainer", "classes", "batch", "prec", "rounds", "seconds", "threads", "backbone", "json", "worker")
    parser = measuring.parser(__doc__, *names)
    parser.add_argument("--names", default="imagenet", choices=["imagenet", "equal", "long"], help="see class_names()")
    parser.add_argument("--test-batch", type=int, default=100, help="images in a test batch")
    parser.add_argument("--test-batches", type=int, default=1, help="test batches that are timed together")
    parser.add_argument("--what", nargs="+", default=["train_step", "test_batch"], choices=["train_step", "test_batch"])
    args = parser.parse_args()
    measuring.main(args, work, records)


if __name__ == "__main__":
    main()
