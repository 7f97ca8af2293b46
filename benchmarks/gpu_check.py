"""Check and measure this project on a GPU: golden cases, precisions, times, memory, test passes.

    python benchmarks/gpu_check.py --minutes 8 --json gpu_check.json

It needs no data and no weights: images and weights of ViT-B/16's size are random. It prints Markdown tables, and at the
end the measurements that it left out, and why. After its minutes it begins no other measurement. Without a GPU it runs
in a reduced form, whose results mean nothing. The exit status is 1 if a measurement failed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from itertools import product
from pathlib import Path

if __name__ == "__main__":  # the project instead of benchmarks/, so that its packages are found first
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch
from PIL import Image

from benchmarks import measuring
from clip.random_weights import random_clip
from common.start import ROOT
from experiments.arguments import parse_arguments as run_arguments
from experiments.configs import CONFIGS
from experiments.configuration import setup_cfg
from trainers import methods

BATCH, SIDE = 4, 224
VISION = {"image_size": SIDE, "patch_size": 32, "layers": 12, "width": 64}  # of the reduced form
TEXT = {"layers": 12, "width": 64}

Items = Iterator[tuple[dict, Callable[[], dict]]]  # facts of a measurement, and the function that measures


class Check:
    """The measurements to make, their device and their time limit.

    Args:
        minutes: after them nothing more begins.
        full: with random weights of ViT-B/16's size; else the reduced form.
        folder: for temporary files.
    """

    def __init__(self, minutes: float, full: bool, folder: Path):
        self.end, self.full, self.folder = time.monotonic() + 60 * minutes, full, folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.records: list[dict] = []
        self.left_out: list[tuple[str, str]] = []
        self.failures = 0
        self.backbone = str(folder / "backbone.pt")
        torch.save(random_clip("ViT-B-16", *(() if full else (VISION, TEXT, 64))).state_dict(), self.backbone)

    @property
    def seconds_left(self) -> float:
        return self.end - time.monotonic()

    def choose(self, full: list, reduced: list) -> list:
        return full if self.full else reduced

    def execute(self, part: str, what: dict, measure: Callable[[], dict]) -> None:
        """Record the result of `measure`; note an error, or why it cannot be measured."""
        name = f"{part}: {', '.join(map(str, what.values()))}"
        try:
            if self.seconds_left <= 0:
                raise NotImplementedError("no time left")
            print(name, file=sys.stderr)
            with redirect_stdout(sys.stderr):
                self.records.append({"part": part, **what, **measure()})
        except NotImplementedError as error:
            self.left_out.append((name, str(error)))
        except Exception as error:  # noqa: BLE001 - the other measurements follow
            self.failures += 1
            self.left_out.append((name, f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"))
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def trainer(self, method: str, classes: int, form: str = "fast", prec: str = "fp32", compiled: bool = False):
        """A trainer as train.py builds it; NotImplementedError if the device cannot run it."""
        if prec == "fp16" and self.device.type == "cpu":
            raise NotImplementedError("fp16 needs a GPU")
        if compiled and self.device.type == "cpu":
            raise NotImplementedError("MODEL.COMPILE needs a GPU")
        torch.manual_seed(0)
        return measuring.build(method, classes, self.backbone, form, prec, BATCH, compiled=compiled)

    def batch(self, classes: int) -> dict[str, torch.Tensor]:
        images = torch.randn(BATCH, 3, SIDE, SIDE, generator=torch.manual_seed(0))
        return {"img": images.to(self.device), "label": (torch.arange(BATCH) % classes).to(self.device)}

    def time(self, function: Callable[[], object]) -> float:
        """Median seconds of ten calls of a function, after three calls that are not counted."""
        for _ in range(3 if self.full else 1):
            function()
        return statistics.median(measuring.timed(function, self.device) for _ in range(10 if self.full else 1))


def golden(check: Check) -> Items:
    """Figures of the published implementations, without TF32."""
    yield {"prec": "fp32"}, partial(golden_cases, check)


def golden_cases(check: Check) -> dict:
    chosen = [] if check.full else ["-k", "vpt_shallow and fast"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_golden.py", *chosen]
    environment, limit = os.environ | {"NVIDIA_TF32_OVERRIDE": "0"}, max(1.0, check.seconds_left / 2)
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        raise NotImplementedError("no time left") from None
    lines = done.stdout.strip().splitlines() or [done.stderr[-200:]]
    if done.returncode:
        raise RuntimeError(lines[-1])
    return {"result": lines[-1]}


def precisions(check: Check) -> Items:
    """Logits, gradients and twenty steps in half precision, against fp32."""
    for method, prec in product(check.choose(measuring.learning(), ["CoOp", "MPL"]), ("fp16", "bf16", "amp")):
        yield {"method": method, "prec": prec}, partial(against_fp32, check, method, prec)


def against_fp32(check: Check, method: str, prec: str) -> dict:
    steps, batch = 20 if check.full else 2, check.batch(50)
    whole, half = check.trainer(method, 50), check.trainer(method, 50, prec=prec)
    half.model.load_state_dict(whole.model.state_dict())
    (logits, gradient), (half_logits, half_gradient) = gradients(whole, batch), gradients(half, batch)
    losses = [[each.forward_backward(batch)["loss"] for _ in range(steps)][-1] for each in (whole, half)]
    return {
        "logits": (half_logits - logits).abs().max().item(),
        "gradient": ((half_gradient - gradient).norm() / gradient.norm()).item(),
        f"loss after {steps} steps": losses[1] - losses[0],
    }


def gradients(trainer, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and the gradient of all learned parameters, in one vector."""
    with trainer.autocast():
        output = trainer.model.output(batch["img"])
        loss, logits = trainer.loss(output, batch["label"])[0], output.logits
    loss.backward()
    found = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    result = logits.detach().float(), torch.cat([gradient.flatten() for gradient in found])
    trainer.model.zero_grad()
    return result


def steps(check: Check) -> Items:
    """Seconds of a training step of every method; compiled ones, which take longest to measure, last."""
    names, counts = check.choose(measuring.learning(), ["CoOp"]), check.choose([5, 50, 200], [5])
    ways = [("fast", False, False), ("plain", False, False), ("fast", False, True), ("fast", True, False)]
    for way, classes, prec, method in product(ways, counts, ("fp32", "fp16", "bf16"), names):
        form, compiled, graph = way
        how = form + " compiled" * compiled + " as a CUDA graph" * graph
        what = {"method": method, "classes": classes, "prec": prec, "form": how}
        yield what, partial(step, check, (method, classes, form, prec, compiled), graph)


def step(check: Check, how: tuple, graph: bool) -> dict:
    trainer, batch = check.trainer(*how), check.batch(how[1])
    function = captured(trainer, batch) if graph else partial(trainer.forward_backward, batch)
    return {"ms": 1e3 * check.time(function)}


def captured(trainer, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """The forward and backward pass of a step as a CUDA graph; the optimiser's step is not in it."""
    if trainer.device.type != "cuda":
        raise NotImplementedError("CUDA graphs need a GPU")

    def both() -> None:
        loss, parts = trainer.loss(trainer.model.output(batch["img"]), batch["label"])
        trainer.model.zero_grad(set_to_none=False)
        trainer.backward(loss, parts)

    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(stream):
            for _ in range(3):
                both()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            both()
    except RuntimeError as error:  # something in the step waits for the GPU, or copies from pageable memory
        raise NotImplementedError(f"cannot be captured: {str(error).splitlines()[0]}") from error
    return graph.replay


def memory(check: Check) -> Items:
    """Peak memory of a training step of MPL."""
    for classes, form in product(check.choose([50, 200, 1000], [5]), ("fast", "plain")):
        yield {"method": "MPL", "classes": classes, "prec": "fp32", "form": form}, partial(peak, check, classes, form)


def peak(check: Check, classes: int, form: str) -> dict:
    trainer = check.trainer("MPL", classes, form)
    if check.device.type == "cpu":
        raise NotImplementedError("it is measured on a GPU only")
    torch.cuda.reset_peak_memory_stats()
    trainer.forward_backward(check.batch(classes))
    return {"MB": torch.cuda.max_memory_allocated() / 2**20}


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


PARTS: dict[str, Callable[[Check], Items]] = {
    "golden cases": golden,
    "against fp32": precisions,
    "peak memory": memory,
    "test pass": test_passes,
    "training step": steps,  # hundreds of them: the last ones may have no time left
}


def report(check: Check) -> str:
    """The records as a Markdown table for each part, and a list of the parts that did not run."""
    lines = [measuring.machine(torch.get_num_threads())]
    if not check.full:
        lines.append("Reduced form: it shows that the check runs; its results mean nothing.")
    for part in dict.fromkeys(record["part"] for record in check.records):
        rows = [each for each in check.records if each["part"] == part]
        lines.append(f"{part.capitalize()}:\n\n{measuring.table(rows)}")
    reasons = [f"- {name}: {why}" for name, why in check.left_out] or ["- nothing"]
    return "\n\n".join([*lines, "\n".join(["Left out:\n", *reasons])])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the records there as well")
    parser.add_argument("--minutes", type=float, default=8, help="after them nothing more begins")
    parser.add_argument("--reduced", action="store_true", help="the form that runs without a GPU")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        full = torch.cuda.is_available() and not args.reduced
        check = Check(args.minutes, full, Path(folder))
        for part, items in PARTS.items():
            for what, measure in items(check):
                check.execute(part, what, measure)
        print(report(check))
        if args.json:
            left_out = [{"what": name, "why": why} for name, why in check.left_out]
            args.json.write_text(json.dumps({"records": check.records, "left_out": left_out}, indent=1) + "\n")
    sys.exit(1 if check.failures else 0)


if __name__ == "__main__":
    main()
