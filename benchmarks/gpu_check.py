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
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from importlib.util import find_spec
from itertools import product
from pathlib import Path

if __name__ == "__main__":  # the project instead of benchmarks/, so that its packages are found first
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch
from PIL import Image

from benchmarks import measuring, official
from benchmarks.official import BATCH, SIDE
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

FIRST, DEPT = ["MPL", "CoOp", "MaPLe", "PromptSRC"], ["DePT+CoOp", "DePT+MaPLe"]


class TimeIsUp(NotImplementedError):
    """The minutes have passed, before a measurement or during one."""


class Check:
    """The results so far, the device and the time limit; `folder` is for temporary files."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.args, self.end, self.folder = args, time.monotonic() + 60 * args.minutes, folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.all, self.full = self.device.type == "cuda", self.device.type == "cuda" and not args.narrow
        self.records: list[dict] = []
        self.left_out: list[tuple[str, str]] = []
        self.failures, self.complete = 0, False
        self.backbone = str(folder / "backbone.pt")
        if self.full:
            clip = random_clip("ViT-B-16")
        elif args.official:  # official code has ViT-B/16's widths in it
            clip = random_clip("ViT-B-16", {"patch_size": 112})
        else:
            clip = measuring.narrow_clip(112)
        torch.save(clip.state_dict(), self.backbone)

    @property
    def seconds_left(self) -> float:
        return self.end - time.monotonic()

    def choose(self, everything: list, reduced: list) -> list:
        return everything if self.all else reduced

    def execute(self, part: str, measure: Callable[..., dict], what: dict) -> None:
        """Record what `measure` returns for these facts; note an error, or why they cannot be measured."""
        name = f"{part}: {', '.join(map(str, what.values()))}"
        try:
            if self.seconds_left <= 0:
                raise TimeIsUp("no time left")
            signal.setitimer(signal.ITIMER_REAL, self.seconds_left)
            print(name, file=sys.stderr, flush=True)
            with redirect_stdout(sys.stderr):
                self.records.append({"part": part, **what, **measure(self, **what)})
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
        return measuring.build(method, classes, self.backbone, form, prec, BATCH, compiled, graphs)

    def run(self, command: list[object], share: float = 1.0) -> subprocess.CompletedProcess:
        """A program of Python on the device of this process, for at most a share of the time that is left."""
        stand_in = ["-m", "benchmarks.stand_in"] if "benchmarks.stand_in" in sys.modules else []
        if stand_in and command[:3] == ["-m", "pytest", "-q"]:
            command = command[3:]
        argv = [sys.executable, *stand_in, *map(str, command)]
        env = os.environ | {"NVIDIA_TF32_OVERRIDE": "0", "PYTHONPATH": os.pathsep.join(sys.path[1:])}
        limit = max(1.0, share * self.seconds_left)
        try:
            return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=limit, env=env)
        except subprocess.TimeoutExpired:
            raise TimeIsUp("no time left") from None


def golden_cases(check: Check, cases: str) -> dict:
    """The numbers of the published implementations, without TF32."""
    chosen = ["-k", f"({cases}) and not plain and not row"] if check.all else ["-k", "vpt_shallow and fast"]
    done = check.run(["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_golden.py", *chosen], 0.5)
    lines = done.stdout.strip().splitlines() or [done.stderr[-200:]]
    if done.returncode:
        raise RuntimeError(lines[-1])
    return {"prec": "fp32", "result": lines[-1]}


def against_fp32(check: Check, method: str, prec: str) -> dict:
    """Logits, gradients and twenty steps in half precision, minus those in fp32; dropout is the same in both."""
    count, batch = 20 if check.full else 2, official.random_batch(50, check.all)
    whole, half = check.trainer(method, 50), check.trainer(method, 50, prec=prec)
    half.model.load_state_dict(whole.model.state_dict())
    found = []
    for trainer in (whole, half):
        torch.manual_seed(0)
        with trainer.autocast():
            images, labels = trainer.parse_batch_train(batch)
            output = trainer.model.output(images)
            trainer.loss(output, labels)[0].backward()
        gradients = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
        trainer.model.zero_grad()
        torch.manual_seed(0)
        losses = [float(trainer.forward_backward(batch)["loss"]) for _ in range(count)]
        found.append((output.logits.detach().float(), torch.cat(gradients), losses[-1]))
    (logits, gradient, loss), (half_logits, half_gradient, half_loss) = found
    return {
        "logits": (half_logits - logits).abs().max().item(),
        "gradient": ((half_gradient - gradient).norm() / gradient.norm()).item(),
        f"loss after {count} steps": half_loss - loss,
    }


def step(check: Check, method: str, classes: int, prec: str, form: str) -> dict:
    """Time, launches and waits of a training step."""
    if form == "official":
        return official_step(check, method, classes, prec)
    graphs = form == "CUDA graphs"
    trainer = check.trainer(method, classes, "plain" if form == "plain" else "fast", prec, form == "compiled", graphs)
    batch = official.random_batch(classes, check.all)
    warm_up = 5 if graphs else 3 if check.full else 1  # a graph is captured in the fourth step
    times = 10 if check.full else 1
    return official.measured(lambda: trainer.forward_backward(batch), check.device, warm_up, times)


def official_step(check: Check, method: str, classes: int, prec: str) -> dict:
    config = f"{recipe(method, 'few_shot').cfg}.yaml"
    if not (check.args.official / "configs/trainers" / method / config).is_file():
        raise NotImplementedError(f"{check.args.official} has no configs/trainers/{method}/{config}")
    if prec == "fp16" and check.device.type == "cpu":
        raise NotImplementedError("fp16 needs a GPU")
    command = ["benchmarks/official.py", check.args.official, "--trainer", method, "--config", config]
    command += ["--backbone", check.backbone, "--classes", classes, "--prec", prec]
    done = check.run([*command, *(() if check.full else ("--warm-up", 1, "--times", 1))])
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def peak(check: Check, method: str, classes: int, prec: str, form: str) -> dict:
    """Peak memory of a training step."""
    trainer = check.trainer(method, classes, form, prec)
    if check.device.type == "cpu":
        raise NotImplementedError("it is measured on a GPU only")
    torch.cuda.reset_peak_memory_stats()
    trainer.forward_backward(official.random_batch(classes, check.all))
    if not (peak := torch.cuda.max_memory_allocated()):
        raise NotImplementedError("this device does not count its memory")
    return {"MB": peak / 2**20}


def images_a_second(check: Check, decoded: str) -> dict:
    """Images a second of a test pass of MPL over photos of 500 x 375 pixels, decoded each time or kept."""
    rng, photos = np.random.default_rng(0), check.folder / "photos"
    for part, label, number in product(("train", "test"), ("a", "b"), range(512 if check.full else 3)):
        (photos / part / label).mkdir(parents=True, exist_ok=True)
        pixels = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375))
        pixels.save(photos / part / label / f"{number}.jpg")
    argv = ["--root", photos, "--trainer", "MPL", "--backbone", check.backbone]
    argv += ["--dataset-config-file", CONFIGS / "datasets/image_folder.yaml", "INPUT.SIZE", (SIDE, SIDE)]
    argv += ["DATALOADER.NUM_WORKERS", 8 if check.full else 0, "DATALOADER.CACHE_TEST", decoded == "kept"]
    argv += ["CACHE", check.folder / "cache", "TRAINER.MPL.PREC", "fp32"]
    trainer = methods()["MPL"](setup_cfg(run_arguments([str(item) for item in argv])))
    trainer.test()  # the first one decodes
    trainer.test()
    return {"images a second": trainer.n_test / trainer.test_seconds}


def grid(**values: Iterable) -> list[dict]:
    """All combinations of these values, as facts of measurements."""
    return [dict(zip(values, each, strict=True)) for each in product(*values.values())]


def parts(check: Check) -> list[tuple[str, Callable[..., dict], list[dict]]]:
    """The parts, the most important ones first: a title, the function that measures, and the facts for it."""
    forms, graphs = ["fast", "plain", *(["official"] if check.args.official else [])], ["CUDA graphs"]
    half, names = ("fp16", "bf16", "amp"), measuring.learning(through_towers=True)
    others = [*(name for name in names if name not in FIRST and not name.startswith("DePT+")), *DEPT]
    first, second, rest = check.choose(FIRST[:1], ["CoOp"]), check.choose(FIRST[1:], []), check.choose(others, [])
    many = check.choose([50, 200, 1000] if check.full else [50], [5])

    def steps(chosen: list, classes: list, forms: list, precs: Iterable = ("fp16", "fp32", "amp")):
        return "training step", step, grid(method=chosen, classes=classes, prec=precs, form=forms)

    return [
        steps(first, check.choose([50], [5]), forms + graphs),
        ("published numbers", golden_cases, grid(cases=["mpl"])),
        steps(second, [50], forms + graphs),
        steps(first + second[:1], check.choose([5, 500], []), forms + graphs),
        ("against fp32", against_fp32, grid(method=check.choose(FIRST, ["CoOp", "MPL"]), prec=half)),
        ("peak memory", peak, grid(method=["MPL"], classes=many, prec=["fp32"], form=forms[:2])),
        ("test pass", images_a_second, grid(decoded=["each time", "kept"])),
        ("published numbers", golden_cases, grid(cases=["not mpl"])),
        ("against fp32", against_fp32, grid(method=rest, prec=half)),
        steps(rest, [50], ["fast", *graphs]),
        steps(check.choose(FIRST, []) + rest, [50], ["fast"], ["bf16"]),
        steps(check.choose(FIRST, ["CoOp"]), [50], ["compiled"]),
    ]


def report(check: Check) -> str:
    """The page: the machine, the records as a table for each part, and the parts left out, by reason."""
    lines = [f"# {measuring.machine(torch.get_num_threads())}", driver()]
    lines.append(f"{', '.join(f'{name}: {value}' for name, value in environment().items())}.")
    if not check.full:
        lines.append("Reduced form or narrow weights: it shows that the check runs; its results mean nothing.")
    if not check.complete:
        lines.append("The check is still running, or was ended: not everything is here.")
    tables: dict[str, list[dict]] = {}
    for record in check.records:
        tables.setdefault(record["part"], []).append({key: record[key] for key in record if key != "part"})
    lines += [f"{part.capitalize()}:\n\n{measuring.table(rows)}" for part, rows in tables.items()]
    reasons: dict[str, list[str]] = {}
    for name, why in check.left_out:
        reasons.setdefault(why, []).append(name)
    left_out = [] if reasons else ["- nothing"]
    for why, names in reasons.items():
        shown = names if len(names) < 9 else [*names[:6], f"and {len(names) - 6} more"]
        left_out.append(f"- {why}: {'; '.join(shown)}")
    return "\n\n".join([*lines, "\n".join(["Left out:\n", *left_out])]) + "\n"


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
    for part in official.PARTS if args.official else ():
        if not (args.official / part).exists():
            raise UsageError(f"{args.official} has no {part}", "give --official a checkout in the form of CoOp's")
    signal.signal(signal.SIGALRM, stop)
    with tempfile.TemporaryDirectory() as folder:
        check = Check(args, Path(folder))
        check.write()
        for part, measure, facts in parts(check):
            for what in facts:
                check.execute(part, measure, what)
        check.complete = True
        check.write()
        print(report(check))
    sys.exit(1 if check.failures else 0)


if __name__ == "__main__":
    run_command(main, "from the first measurement")
