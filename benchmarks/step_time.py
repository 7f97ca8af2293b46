"""Seconds and memory of a training step or a test batch, by form of the towers and precision.

    python benchmarks/step_time.py --trainer MPL --form fast --prec fp32 bf16    # README.md has more commands

The ways that the options name are measured in turns, each time in a new process, with random weights of ViT-B/16's
size, random images and the paper's settings of the method (with `--backbone small`, those of its small.yaml). A record
has the median of the rounds, the ratio of the first way's time to its own, and the memory that a step needs beyond what
the process holds before it (weights, prompts, libraries). A test batch of a method that answers from views is one image
with all its views.
"""

import json
import statistics
import subprocess
import sys
from argparse import SUPPRESS, Namespace
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path

if __name__ == "__main__":  # the project instead of benchmarks/, so that its packages are found first
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from benchmarks import measuring
from common.start import at_least
from trainers import methods
from trainers.base.settings import PRECISIONS
from trainers.base.test_time import ViewsTrainer

FORMS = ("fast", "plain")
WHAT = ("train_step", "test_batch")
WAY = ("form", "prec")  # the options whose values are compared
STEPS = 3, 15  # at least and at most, in one process
LONG = 60  # seconds after which fewer steps are enough


def work(way: Namespace) -> dict:
    """Measure one way in this process; returns the median seconds and the largest memory."""
    torch.set_num_threads(way.threads)
    torch.manual_seed(0)
    trainer = measuring.build(way.trainer, way.classes, way.backbone, way.form, way.prec, way.batch)
    size = way.batch if way.what == "train_step" else way.test_batch
    shape = (size,)
    if views := isinstance(trainer, ViewsTrainer):  # which tests one image after another
        size, shape = 1, (1, trainer.settings.VIEWS)
    images = torch.randn(*shape, 3, *trainer.cfg.INPUT.SIZE, device=trainer.device)
    batch = {"img": images, "label": torch.randint(way.classes, (size,), device=trainer.device)}

    def step() -> None:
        if way.what == "train_step":
            trainer.forward_backward(batch)
        else:
            if not views or way.form != "fast":  # published test-time code encodes the texts for each image
                trainer.set_model_mode("eval")  # a new evaluation
            trainer.model_inference(images)

    before = peak(trainer.device)
    step()  # a warm-up, which also computes what is computed once in a run
    memory = peak(trainer.device, reset=False) - before
    seconds: list[float] = []
    while not enough(seconds, way.seconds):
        seconds.append(measuring.timed(step, trainer.device))
    return {"seconds": statistics.median(seconds), "mb": memory / 2**20}


def enough(seconds: list[float], least: float) -> bool:
    """Whether there are enough steps: three or more that take `least` seconds together, or fewer in a minute."""
    fewest, most = STEPS
    return len(seconds) >= most or (sum(seconds) >= least and (len(seconds) >= fewest or sum(seconds) >= LONG))


def peak(device: torch.device, reset: bool = True) -> int:
    """The largest memory in bytes since the last reset: of the GPU, or of the process as Linux counts it."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    (line,) = (each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def in_process(way: dict) -> dict:
    """`work` in a new process."""
    command = [sys.executable, __file__, "--worker", json.dumps(way | {"json": None})]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        sys.exit(f"error: {way}: {lines[-1] if lines else 'no reason was given'}")
    return json.loads(done.stdout.splitlines()[-1])


def records(args: Namespace) -> Iterator[dict]:
    """A record for each method, number of classes, kind of step and way."""
    trainers = measuring.learning() if "all" in args.trainer else args.trainer
    for trainer, classes, what in product(trainers, args.classes, args.what):
        if what == "test_batch" or methods()[trainer].learns:
            yield from compare(args, {"trainer": trainer, "classes": classes, "what": what})


def compare(args: Namespace, kind: dict) -> Iterator[dict]:
    """A record for each way to compute one kind of step."""
    ways = {str(way): dict(zip(WAY, way, strict=True)) for way in product(*(getattr(args, name) for name in WAY))}
    memory = dict.fromkeys(ways, 0.0)

    def seconds(name: str) -> float:
        found = in_process(vars(args) | kind | ways[name])
        memory[name] = max(found["mb"], memory[name])
        return found["seconds"]

    measured = measuring.in_turns({name: partial(seconds, name) for name in ways}, args.rounds)
    for name, (median, ratio) in measured.items():
        yield kind | ways[name] | {"seconds": median, "ratio": ratio, "mb": memory[name]}


def main(argv: list[str] | None = None) -> None:
    parser = measuring.parser(__doc__)
    add, counts = parser.add_argument, {"type": at_least(1), "nargs": "+"}
    add("--trainer", nargs="+", default=["MPL"], choices=[*methods(), "all"], metavar="METHOD")
    add("--classes", default=[5, 50, 200], **counts)
    add("--what", nargs="+", default=["train_step"], choices=WHAT)
    help = "of the towers; published: plain, with what the published code computes besides (CLIPLoRA)"
    add("--form", nargs="+", default=FORMS, choices=[*FORMS, "published"], help=help)
    add("--prec", nargs="+", default=["fp32"], choices=PRECISIONS)
    add("--batch", type=at_least(1), default=4, help="images in a training step")
    add("--test-batch", type=at_least(1), default=100, help="images in a test batch")
    add("--seconds", type=float, default=10, help="least time of measuring in one process")
    add("--backbone", default="", help="a weight file; by default random weights are written to a temporary one")
    add("--worker", type=json.loads, help=SUPPRESS)  # the settings of `in_process`
    args = parser.parse_args(argv)
    if args.worker:
        print(json.dumps(work(Namespace(**args.worker))))
    else:
        measuring.run(args, records)


if __name__ == "__main__":
    main()
