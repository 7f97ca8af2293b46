"""A training step of official code, on this project's toolbox; `gpu_check.py --official DIR` starts it.

    python benchmarks/official.py DIR --trainer MPL --config FILE.yaml --backbone FILE --classes 50 --prec fp16

It runs the code in DIR, a checkout in the form of CoOp's: train.py with `extend_cfg`, the packages clip, datasets and
trainers, and configs/. In fp32 all weights are made fp32 after the model is built, because the official code leaves
some in fp16. The last line printed is a record in JSON.

What steps of this project share with it is here, too: this module imports nothing else of the project.
"""

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":  # the project instead of benchmarks/, until `build` puts the official code there
    sys.path[0] = str(ROOT)

import torch
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import build_trainer
from open_clip import IMAGENET_CLASSNAMES
from torch.profiler import ProfilerActivity, profile

BATCH, SIDE = 4, 224
PARTS = ("train.py", "clip/clip.py", "datasets", "trainers", "configs/trainers")
LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")  # calls to CUDA
WAITS = "called a synchronizing CUDA operation"  # torch's warning


def random_batch(classes: int, pinned: bool, seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch as a loader gives it: in pinned memory for a GPU."""
    images = torch.randn(BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    batch = {"img": images, "label": (seed + torch.arange(BATCH)) % classes}
    return {key: value.pin_memory() if pinned else value for key, value in batch.items()}


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, until the device has finished."""
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measured(step: Callable[[], object], device: torch.device, warm_up: int, times: int) -> dict:
    """Milliseconds of a step (median of `times`), and on CUDA its launches and how often the CPU waits for the device.

    On the stand-in for a GPU, the launches are its operations.
    """
    for _ in range(warm_up):
        step()
    found: dict = {"ms": 1e3 * statistics.median(timed(step, device) for _ in range(times))}
    if device.type != "cuda":
        return found
    if stand_in := sys.modules.get("benchmarks.stand_in"):
        stand_in.COUNTED.reset()
        step()
        return found | {"launches": stand_in.COUNTED.launches.total(), "waits": stand_in.COUNTED.waits.total()}
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = sum(WAITS in str(warning.message) for warning in warned)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize()
    launches = sum(event.count for event in seen.key_averages() if event.key.startswith(LAUNCHES))
    return found | {"launches": launches or "not seen by torch's profiler", "waits": waits}


def ready(cfg: Any, method: str, section: str, prec: str, backbone: str, classes: int, batch: int = BATCH) -> Any:
    """The trainer of a configuration, ready for a step, on a dataset of ImageNet's first class names without images."""

    @DATASET_REGISTRY.register(force=True)
    class Names(DatasetBase):
        def __init__(self, cfg):
            items = [Datum(label=label, classname=name) for label, name in enumerate(IMAGENET_CLASSNAMES[:classes])]
            super().__init__(train_x=items * batch, test=items)

    cfg.TRAINER.NAME, cfg.DATASET.NAME, cfg.MODEL.BACKBONE.NAME, cfg.SEED = method, "Names", backbone, 1
    cfg.TRAINER[section].PREC, cfg.DATALOADER.NUM_WORKERS = prec, 0
    trainer = build_trainer(cfg)
    trainer.batch_idx, trainer.num_batches = 1, 10**9  # the first step of a run is checked, and waits
    trainer.set_model_mode("train")
    return trainer


def build(args: argparse.Namespace) -> Any:
    """The trainer of the official code."""
    sys.path[:] = [str(args.checkout), *(path for path in sys.path if Path(path).resolve() != ROOT)]
    import_module("clip.clip")._download = lambda *arguments, **options: args.backbone
    cfg = get_cfg_default()
    import_module("train").extend_cfg(cfg)
    cfg.merge_from_file(str(args.checkout / "configs/trainers" / args.trainer / args.config))
    trainer = ready(cfg, args.trainer, args.trainer.upper(), args.prec, "ViT-B/16", args.classes)
    if args.prec == "fp32":
        trainer.model.float()
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("checkout", type=lambda text: Path(text).resolve())
    parser.add_argument("--trainer", required=True)
    parser.add_argument("--config", required=True, help="its YAML file, in configs/trainers/TRAINER")
    parser.add_argument("--backbone", required=True, help="weights of ViT-B/16's widths")
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--prec", choices=("fp32", "fp16", "amp"), default="fp16")
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--times", type=int, default=10)
    args = parser.parse_args()
    trainer = build(args)
    batch = random_batch(args.classes, trainer.device.type == "cuda")
    print(json.dumps(measured(lambda: trainer.forward_backward(batch), trainer.device, args.warm_up, args.times)))


if __name__ == "__main__":
    main()
