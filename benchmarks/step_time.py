"""Seconds and memory of a training step and a test batch, in the fast and the plain form of the towers.

    python benchmarks/step_time.py --trainer MPL --classes 5 50 200 --batch 4 --json step_time.json

The two forms run in turn, each time in a fresh process, on random weights of ViT-B/16's size and random images, under
the paper's settings of the method (with `--backbone small`, those of its small.yaml). Reported is the median of the
steps, of which there are fewer the longer they take.
`share` is how much of the machine's own speed the fast form reaches: the floating-point operations that it needs
(torch's counter), over its time, over the speed of a product of two 2048 x 2048 matrices measured in the same process.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":  # the project in place of benchmarks/, so that its packages are found first
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from common.start import required_packages

with required_packages():
    import torch

    from experiments.configs import config_folder
    from experiments.protocols import recipe
    from trainers import methods

FORMS = ("fast", "plain")
PASSED_ON = ("names", "batch", "test_batch", "test_batches", "prec", "seconds", "threads")
STEPS = 3, 15  # at least and at most, in one process
LONG = 60  # seconds after which fewer steps are enough


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trainer", default="MPL", choices=[*methods(), "all"])
    parser.add_argument("--classes", type=int, nargs="+", default=[5, 50, 200])
    parser.add_argument("--names", default="imagenet", choices=["imagenet", "equal", "long"], help="see class_names()")
    parser.add_argument("--batch", type=int, default=4, help="images in a training step")
    parser.add_argument("--test-batch", type=int, default=100, help="images in a test batch")
    parser.add_argument("--test-batches", type=int, default=1, help="test batches that are timed together")
    parser.add_argument("--prec", default="fp32", choices=["fp32", "fp16", "bf16", "amp"])
    parser.add_argument("--what", nargs="+", default=["train_step", "test_batch"], choices=["train_step", "test_batch"])
    parser.add_argument("--rounds", type=int, default=1, help="how often the two forms take turns")
    parser.add_argument("--seconds", type=float, default=10, help="least time of measuring in one process")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--backbone", help="a weight file; by default random weights are written to a temporary one")
    parser.add_argument("--json", type=Path, help="write the records there as well")
    parser.add_argument("--worker", choices=FORMS, help=argparse.SUPPRESS)
    return parser.parse_args()


def class_names(kind: str, classes: int) -> list[str]:
    """Names of ImageNet classes (`imagenet`), these with a first one of 40 tokens (`long`), or names of four tokens."""
    from open_clip import IMAGENET_CLASSNAMES

    if kind == "equal":  # each digit is a token
        return [f"kind {number:03d}" for number in range(classes)]
    names = IMAGENET_CLASSNAMES[:classes]
    return ["very " * 39 + "long", *names[1:]] if kind == "long" else names


def build(args: argparse.Namespace, classes: int, clip=None, compiled: bool = False):
    """The trainer, as train.py makes it, on a dataset of nothing but class names.

    Args:
        args: `trainer`, `worker` (the form of the towers), `backbone`, `prec`, `batch` and `names`.
        classes: how many.
        clip: the backbone, if it is loaded already.
        compiled: MODEL.COMPILE.
    """
    from dassl.config import get_cfg_default
    from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum

    from experiments.configuration import extend_cfg

    @DATASET_REGISTRY.register(force=True)
    class Names(DatasetBase):
        def __init__(self, cfg):
            names = class_names(args.names, classes)
            items = [Datum(label=label, classname=name) for label, name in enumerate(names)]
            super().__init__(train_x=items * args.batch, test=items)

    cfg = get_cfg_default()
    extend_cfg(cfg, args.trainer)
    settings = recipe(args.trainer, "few_shot", backbone=args.backbone).cfg
    cfg.merge_from_file(str(config_folder(args.trainer) / f"{settings}.yaml"))
    cfg.TRAINER.NAME, cfg.DATASET.NAME = args.trainer, "Names"
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.TOWERS = args.backbone, args.worker
    cfg.TRAINER[methods()[args.trainer].section()].PREC = args.prec
    cfg.DATALOADER.NUM_WORKERS, cfg.MODEL.COMPILE = 0, compiled
    trainer = methods()[args.trainer](cfg, clip=clip)
    trainer.batch_idx, trainer.num_batches = 0, 10**9
    return trainer


def work(args: argparse.Namespace) -> dict:
    """Measure one form, in this process: median seconds, peak memory, operations, speed of the machine."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    (classes,), (what,) = args.classes, args.what
    trainer = build(args, classes)
    device, size = trainer.device, trainer.cfg.INPUT.SIZE
    batch, batches = (args.batch, 1) if what == "train_step" else (args.test_batch, args.test_batches)
    images = torch.randn(max(2, batch), 3, *size, device=device)
    labels = torch.randint(classes, (len(images),), device=device)

    def step(batch: int = batch, batches: int = batches) -> None:
        if what == "train_step":
            trainer.forward_backward({"img": images[:batch], "label": labels[:batch]})
            return
        trainer.set_model_mode("eval")  # a new evaluation
        for _ in range(batches):
            trainer.model_inference(images[:batch])

    trainer.set_model_mode("train")
    step(1, 1)  # a warm-up, which also computes what is computed once in a run
    # Only the fast form's operations are asked for. What images need grows with their number, the rest is constant.
    one, two = (operations(step, count) if args.worker == "fast" else 0 for count in (1, 2))
    seconds = []
    while not enough(seconds, args.seconds):
        seconds.append(timed(step, device))
    peak = (
        torch.cuda.max_memory_allocated()
        if device.type == "cuda"
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    return {
        "seconds": statistics.median(seconds),
        "peak_mb": peak / 2**20,
        "flop": one + (two - one) * (batch * batches - 1),
        "flop_per_second": matmul_speed(device, args.prec),
    }


def enough(seconds: list[float], least: float) -> bool:
    """Whether there are enough steps: three or more that take `least` seconds together, or fewer in a minute."""
    fewest, most = STEPS
    return len(seconds) >= most or (sum(seconds) >= least and (len(seconds) >= fewest or sum(seconds) >= LONG))


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


def timed(function, device: torch.device) -> float:
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compared(
    ways: dict[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, tuple[float, float]]:
    """The median seconds of each way, and the median ratio of the first one's to its own.

    They take turns, so that what else the machine does meets all of them. One more round, at the start, warms up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + rounds):
        for name, way in ways.items():
            seconds[name].append(timed(way, device))
    first, *_ = seconds.values()
    ratios = {name: [a / b for a, b in zip(first[1:], own[1:], strict=True)] for name, own in seconds.items()}
    return {name: (statistics.median(own[1:]), statistics.median(ratios[name])) for name, own in seconds.items()}


def matmul_speed(device: torch.device, prec: str) -> float:
    """Floating-point operations a second of a 2048 x 2048 product in the type that `prec` multiplies in."""
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    dtype = torch.float32 if prec == "fp32" or (prec == "fp16" and device.type == "cpu") else half
    a, b = (torch.randn(2048, 2048, device=device).to(dtype) for _ in range(2))
    a @ b
    return 2 * 2048**3 / statistics.median(timed(lambda: a @ b, device) for _ in range(15))


def start_worker(args: argparse.Namespace, trainer: str, classes: int, what: str, form: str) -> dict:
    """`work` in a fresh process."""
    options = {"trainer": trainer, "classes": classes, "what": what, "worker": form, "backbone": args.backbone}
    options |= {key: getattr(args, key) for key in PASSED_ON}
    command = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
    done = subprocess.run([sys.executable, __file__, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {trainer}, {form}, {classes} classes: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(args: argparse.Namespace, trainer: str, classes: int, what: str) -> dict:
    """Both forms in turn, in fresh processes, as one record."""
    runs = {form: [] for form in FORMS}
    for _ in range(args.rounds):
        for form in FORMS:
            runs[form].append(start_worker(args, trainer, classes, what, form))
    fast, plain = ({key: statistics.median(run[key] for run in runs[form]) for key in runs[form][0]} for form in FORMS)
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
    args = parse_arguments()
    if args.worker:
        print(json.dumps(work(args)))
        return
    trainers = (
        [name for name, method in methods().items() if method.learns and method.transfers]
        if args.trainer == "all"
        else [args.trainer]
    )
    with tempfile.TemporaryDirectory() as folder:
        if not args.backbone:
            from clip.random_weights import random_clip

            args.backbone = f"{folder}/vit_b16.pt"
            torch.save(random_clip("ViT-B-16").state_dict(), args.backbone)
        print(f"{platform.machine()}, {args.threads} threads, torch {torch.__version__}, {args.prec}")
        columns = ("trainer", "classes", "what", "plain s", "fast s", "ratio", "plain MB", "fast MB", "share")
        print("".join(f"{column:>12}" for column in columns))
        records = []
        for trainer in trainers:
            for classes in args.classes:
                for what in args.what:
                    if what == "train_step" and not methods()[trainer].learns:
                        continue
                    records.append(record := measure(args, trainer, classes, what))
                    print(
                        f"{trainer:>12}{classes:>12}{what:>12}{record['plain_s']:>12.3f}{record['fast_s']:>12.3f}"
                        f"{record['ratio']:>12.2f}{record['plain_peak_mb']:>12.0f}{record['fast_peak_mb']:>12.0f}"
                        f"{record['matmul_share']:>12.2f}",
                        flush=True,
                    )
                    if args.json:
                        args.json.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
