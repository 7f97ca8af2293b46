"""Check and measure this project on a GPU: steps, launches, precisions, memory, test passes and published numbers.

    python benchmarks/gpu_check.py --minutes 8 --page gpu_check.md --official ../Modular-Prompt-Learning

It needs no data and no weights: images and weights of ViT-B/16's size are random. The page is written after every
measurement, the most important ones first, and names the parts left out. After its minutes the measurement that
is running is left out, too. `--official DIR` measures the steps of a checkout of official code, whose code it runs.
Without a GPU it runs in a reduced form, whose results mean nothing. The exit status is 1 if a measurement failed.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path

if __name__ == "__main__":  # the project instead of benchmarks/, so that its packages are found first
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch
from PIL import Image

from benchmarks import measuring, official
from benchmarks.one_step import measured
from clip.random_weights import random_clip
from common.errors import UsageError
from common.files import write_text
from common.start import ROOT
from experiments.arguments import parse_arguments as run_arguments
from experiments.configs import CONFIGS
from experiments.configuration import setup_cfg
from experiments.environment import environment, unused_gpu
from experiments.protocols import recipe
from experiments.session import run_command
from trainers import methods

BATCH, SIDE = 4, 224
VISION = {"image_size": SIDE, "patch_size": 112, "layers": 12, "width": 64}  # of narrow weights
TEXT = {"layers": 12, "width": 64}
FIRST, DEPT = ["MPL", "CoOp", "MaPLe", "PromptSRC"], ["DePT+CoOp", "DePT+MaPLe"]

Items = Iterator[tuple[dict, Callable[[], dict]]]  # facts of a measurement, and the function that measures


class TimeIsUp(NotImplementedError):
    """The minutes have passed, before a measurement or during one."""


class Check:
    """The measurements to make, their device and their time limit.

    Args:
        args: options of the command line.
        folder: for temporary files.
    """

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.args, self.end, self.folder = args, time.monotonic() + 60 * args.minutes, folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.all, self.full = self.device.type == "cuda", self.device.type == "cuda" and not args.narrow
        self.records: list[dict] = []
        self.left_out: list[tuple[str, str]] = []
        self.failures, self.complete = 0, False
        self.backbone, self.wide = str(folder / "backbone.pt"), str(folder / "wide.pt")
        torch.save(random_clip("ViT-B-16", *(() if self.full else (VISION, TEXT, 64))).state_dict(), self.backbone)
        if self.full or not self.all or not args.official:
            self.wide = self.backbone
        else:  # official code has ViT-B/16's widths in it
            torch.save(random_clip("ViT-B-16", VISION | {"width": 768}).state_dict(), self.wide)

    @property
    def seconds_left(self) -> float:
        return self.end - time.monotonic()

    def choose(self, everything: list, reduced: list) -> list:
        return everything if self.all else reduced

    def execute(self, part: str, what: dict, measure: Callable[[], dict]) -> None:
        """Record the result of `measure`; note an error, or why it cannot be measured. Write the page."""
        name = f"{part}: {', '.join(map(str, what.values()))}"
        try:
            if self.seconds_left <= 0:
                raise TimeIsUp("no time left")
            signal.setitimer(signal.ITIMER_REAL, self.seconds_left)
            print(name, file=sys.stderr, flush=True)
            with redirect_stdout(sys.stderr):
                self.records.append({"part": part, **what, **measure()})
        except (NotImplementedError, UsageError) as error:
            self.left_out.append((name, str(error)))
        except Exception as error:  # noqa: BLE001 - the other measurements follow
            self.failures += 1
            self.left_out.append((name, f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.write()

    def write(self) -> None:
        """The page, and the records as JSON."""
        write_text(self.args.page, report(self))
        if self.args.json:
            left_out = [{"what": name, "why": why} for name, why in self.left_out]
            write_text(self.args.json, json.dumps({"records": self.records, "left_out": left_out}, indent=1) + "\n")

    def trainer(self, method: str, classes: int, form: str = "fast", prec: str = "fp32", compiled=False, graphs=False):
        """A trainer as train.py builds it; NotImplementedError if the device cannot run it."""
        wanted = {"fp16": prec == "fp16", "MODEL.COMPILE": compiled, "MODEL.CUDA_GRAPHS": graphs}
        if self.device.type == "cpu" and any(wanted.values()):
            raise NotImplementedError(f"{next(name for name, needed in wanted.items() if needed)} needs a GPU")
        if compiled and find_spec("triton") is None:
            raise NotImplementedError("MODEL.COMPILE needs Triton")
        torch.manual_seed(0)
        trainer = measuring.build(method, classes, self.backbone, form, prec, BATCH, compiled, graphs)
        trainer.batch_idx = 1  # the first step of a run is checked, and waits
        return trainer

    def batch(self, classes: int) -> dict[str, torch.Tensor]:
        """As a loader gives it: in pinned memory for a GPU."""
        images = torch.randn(BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
        batch = {"img": images, "label": torch.arange(BATCH) % classes}
        return {key: value.pin_memory() if self.device.type == "cuda" else value for key, value in batch.items()}

    def run(self, command: list[object], share: float = 1.0) -> subprocess.CompletedProcess:
        """A program of Python on the device of this process, for at most a share of the time that is left."""
        stand_in = ["-m", "benchmarks.stand_in"] if "benchmarks.stand_in" in sys.modules else []
        if stand_in and command[:3] == ["-m", "pytest", "-q"]:
            command = command[3:]
        argv = [sys.executable, *stand_in, *map(str, command)]
        try:
            limit = max(1.0, share * self.seconds_left)
            return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=limit, env=self.environment)
        except subprocess.TimeoutExpired:
            raise TimeIsUp("no time left") from None

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"NVIDIA_TF32_OVERRIDE": "0", "PYTHONPATH": os.pathsep.join(sys.path[1:])}


def published_numbers(check: Check, cases: str) -> Items:
    """The numbers of the published implementations, without TF32."""
    yield {"cases": cases, "prec": "fp32"}, partial(golden_cases, check, cases)


def golden_cases(check: Check, cases: str) -> dict:
    chosen = ["-k", f"({cases}) and not plain and not row"] if check.all else ["-k", "vpt_shallow and fast"]
    done = check.run(["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_golden.py", *chosen], 0.5)
    lines = done.stdout.strip().splitlines() or [done.stderr[-200:]]
    if done.returncode:
        raise RuntimeError(lines[-1])
    return {"result": lines[-1]}


def precisions(check: Check, chosen: list[str]) -> Items:
    """Logits, gradients and twenty steps in half precision, against fp32."""
    for method, prec in product(chosen, ("fp16", "bf16", "amp")):
        yield {"method": method, "prec": prec}, partial(against_fp32, check, method, prec)


def against_fp32(check: Check, method: str, prec: str) -> dict:
    steps, batch = 20 if check.full else 2, check.batch(50)
    whole, half = check.trainer(method, 50), check.trainer(method, 50, prec=prec)
    half.model.load_state_dict(whole.model.state_dict())
    (logits, gradient), (half_logits, half_gradient) = (measuring.gradients(each, batch) for each in (whole, half))
    in_fp32, in_half = (measuring.loss_after(each, batch, steps) for each in (whole, half))
    return {
        "logits": (half_logits - logits).abs().max().item(),
        "gradient": ((half_gradient - gradient).norm() / gradient.norm()).item(),
        f"loss after {steps} steps": in_half - in_fp32,
    }


def steps(
    check: Check, chosen: Iterable[str], counts: list[int], forms: Iterable[str], precisions: Iterable[str]
) -> Items:
    """Time, launches and waits of training steps."""
    for classes, method, prec, form in product(counts, chosen, precisions, forms):
        measure = official_step if form == "official" else step
        if form != "official" or check.args.official:
            what = {"method": method, "classes": classes, "prec": prec, "form": form}
            yield what, partial(measure, check, method, classes, prec, form)


def step(check: Check, method: str, classes: int, prec: str, form: str) -> dict:
    graphs = form == "CUDA graphs"
    trainer = check.trainer(method, classes, "plain" if form == "plain" else "fast", prec, form == "compiled", graphs)
    batch = check.batch(classes)
    warm_up = 5 if graphs else 3 if check.full else 1  # a graph is captured in the fourth step
    return measured(partial(trainer.forward_backward, batch), check.device, warm_up, 10 if check.full else 1)


def official_step(check: Check, method: str, classes: int, prec: str, form: str) -> dict:
    config = f"{recipe(method, 'few_shot').cfg}.yaml"
    if not (check.args.official / "configs/trainers" / method / config).is_file():
        raise NotImplementedError(f"{check.args.official} has no configs/trainers/{method}/{config}")
    if prec == "fp16" and check.device.type == "cpu":
        raise NotImplementedError("fp16 needs a GPU")
    command = ["benchmarks/official.py", check.args.official, "--trainer", method, "--config", config]
    command += ["--backbone", check.wide, "--classes", classes, "--prec", prec]
    done = check.run([*command, *(() if check.full else ("--warm-up", 1, "--times", 1))])
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def memory(check: Check) -> Items:
    """Peak memory of a training step of MPL."""
    for classes, form in product(check.choose([50, 200, 1000] if check.full else [50], [5]), ("fast", "plain")):
        yield {"method": "MPL", "classes": classes, "prec": "fp32", "form": form}, partial(peak, check, classes, form)


def peak(check: Check, classes: int, form: str) -> dict:
    trainer = check.trainer("MPL", classes, form)
    if check.device.type == "cpu":
        raise NotImplementedError("it is measured on a GPU only")
    torch.cuda.reset_peak_memory_stats()
    trainer.forward_backward(check.batch(classes))
    if not (peak := torch.cuda.max_memory_allocated()):
        raise NotImplementedError("this device does not count its memory")
    return {"MB": peak / 2**20}


def test_passes(check: Check) -> Items:
    """Images a second of a test pass of MPL over photos of 500 x 375 pixels, decoded each time or kept."""
    rng, photos = np.random.default_rng(0), check.folder / "photos"
    for part, label, number in product(("train", "test"), ("a", "b"), range(512 if check.full else 3)):
        (photos / part / label).mkdir(parents=True, exist_ok=True)
        pixels = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375))
        pixels.save(photos / part / label / f"{number}.jpg")
    for kept in (False, True):
        yield {"decoded": "kept" if kept else "each time"}, partial(images_a_second, check, photos, kept)


def images_a_second(check: Check, photos: Path, kept: bool) -> dict:
    argv = ["--root", photos, "--trainer", "MPL", "--backbone", check.backbone]
    argv += ["--dataset-config-file", CONFIGS / "datasets/image_folder.yaml", "INPUT.SIZE", (SIDE, SIDE)]
    argv += ["DATALOADER.NUM_WORKERS", 8 if check.full else 0, "DATALOADER.CACHE_TEST", kept]
    argv += ["CACHE", check.folder / "cache", "TRAINER.MPL.PREC", "fp32"]
    trainer = methods()["MPL"](setup_cfg(run_arguments([str(item) for item in argv])))
    trainer.test()  # the first one decodes
    trainer.test()
    return {"images a second": trainer.n_test / trainer.test_seconds}


def parts(check: Check) -> Iterator[tuple[str, Items]]:
    """The parts with their measurements, the most important ones first."""
    others = [name for name in measuring.stepped() if name not in FIRST and not name.startswith("DePT+")] + DEPT
    forms, precs = ("fast", "plain", "official"), ("fp16", "fp32", "amp")
    first, second = check.choose(FIRST[:1], ["CoOp"]), check.choose(FIRST[1:], [])
    yield "training step", steps(check, first, check.choose([50], [5]), forms, precs)
    yield "training step", steps(check, first, check.choose([50], [5]), ["CUDA graphs"], precs)
    yield "published numbers", published_numbers(check, "mpl")
    yield "training step", steps(check, second, [50], [*forms, "CUDA graphs"], precs)
    yield "training step", steps(check, first + second[:1], check.choose([5, 500], []), [*forms, "CUDA graphs"], precs)
    yield "against fp32", precisions(check, check.choose(FIRST, ["CoOp", "MPL"]))
    yield "peak memory", memory(check)
    yield "test pass", test_passes(check)
    yield "published numbers", published_numbers(check, "not mpl")
    yield "against fp32", precisions(check, check.choose(others, []))
    yield "training step", steps(check, check.choose(others, []), [50], ["fast", "CUDA graphs"], precs)
    yield "training step", steps(check, check.choose(FIRST + others, []), [50], ["fast"], ["bf16"])
    yield "training step", steps(check, check.choose(FIRST, ["CoOp"]), [50], ["compiled"], precs)


def report(check: Check) -> str:
    """The page: the machine, the records as a table for each part, and the parts left out, by reason."""
    lines = [f"# {measuring.machine(torch.get_num_threads())}", driver()]
    lines.append(f"{', '.join(f'{name}: {value}' for name, value in environment().items())}.")
    if not check.full:
        lines.append("Reduced form or narrow weights: it shows that the check runs; its results mean nothing.")
    if not check.complete:
        lines.append("The check is still running, or was ended: not everything is here.")
    for part in dict.fromkeys(record["part"] for record in check.records):
        rows = [{key: value for key, value in each.items() if key != "part"} for each in check.records]
        rows = [row for row, each in zip(rows, check.records, strict=True) if each["part"] == part]
        lines.append(f"{part.capitalize()}:\n\n{measuring.table(rows)}")
    reasons: dict[str, list[str]] = {}
    for name, why in check.left_out:
        reasons.setdefault(why, []).append(name)
    left_out = [f"- {why}: {shortened(names)}" for why, names in reasons.items()] or ["- nothing"]
    return "\n\n".join([*lines, "\n".join(["Left out:\n", *left_out])]) + "\n"


def shortened(names: list[str]) -> str:
    return "; ".join(names if len(names) < 9 else [*names[:6], f"and {len(names) - 6} more"])


def driver() -> str:
    """NVIDIA's driver and the memory of the GPU, or why torch does not use it."""
    if not shutil.which("nvidia-smi"):
        return f"No NVIDIA driver. {unused_gpu()}".strip()
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True)
    return " ".join(f"{found.stdout or found.stderr} {unused_gpu()}".split())


def stop(number: int, frame: object) -> None:
    raise TimeIsUp("no time left")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--page", type=Path, default=Path("gpu_check.md"), help="the results (default: gpu_check.md)")
    parser.add_argument("--json", type=Path, help="write the records there as well")
    parser.add_argument("--minutes", type=float, default=8, help="after them it ends")
    parser.add_argument("--narrow", action="store_true", help="narrow weights, and each step only once")
    parser.add_argument("--official", type=Path, metavar="DIR", help="a checkout of official code, which is run")
    args = parser.parse_args(argv)
    if args.official and (part := official.missing(args.official)):
        raise UsageError(f"{args.official} has no {part}", "give --official a checkout in the form of CoOp's")
    signal.signal(signal.SIGALRM, stop)
    with tempfile.TemporaryDirectory() as folder:
        check = Check(args, Path(folder))
        check.write()
        for part, items in parts(check):
            for what, measure in items:
                check.execute(part, what, measure)
        check.complete = True
        check.write()
        print(report(check))
    sys.exit(1 if check.failures else 0)


if __name__ == "__main__":
    run_command(main, "from the first measurement")
