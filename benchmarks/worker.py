"""One measurement, in a process of its own: `measure.py` starts it.

    python benchmarks/worker.py '{"checkout": "DIR", "what": "train_step", ...}'

The packages are those of the checkout: this one, another commit, or official code in the form of
CoOp's (train.py with `extend_cfg`, the packages clip, datasets and trainers, configs/). So this
file uses only what all of them have: Dassl's configuration, registries and trainer. The last line
printed is a record in JSON.
"""

import json
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# Calls to CUDA
LAUNCHES = (
    "cudaLaunch",
    "cuLaunch",
    "cudaGraphLaunch",
    "cudaMemcpyAsync",
    "cudaMemsetAsync",
)
WAITS = "called a synchronizing CUDA operation"  # torch's warning


def build(way: Namespace) -> Any:
    """The trainer, ready for a step, on a dataset of ImageNet's first class names without
    images.
    """
    from dassl.config import get_cfg_default
    from dassl.engine import build_trainer

    register_names(way)
    cfg = get_cfg_default()
    if way.official:
        sys.path.insert(0, way.checkout)
        official_clip: Any = import_module("clip.clip")
        official_clip._download = lambda *arguments, **options: way.backbone
        import_module("train").extend_cfg(cfg)
    else:
        import_module("runs.config").extend_cfg(cfg, way.trainer)
    cfg.merge_from_file(str(Path(way.checkout, way.config)))
    cfg.MODEL.BACKBONE.NAME = "ViT-B/16" if way.official else way.backbone
    if not way.official:
        cfg.merge_from_list([*way.settings, "MODEL.BACKBONE.TOWERS", way.form])
    cfg.TRAINER.NAME = way.trainer
    cfg.DATASET.NAME = "Names"
    cfg.SEED = 1
    cfg.TRAINER[way.section].PREC = way.prec
    cfg.DATALOADER.NUM_WORKERS = 0
    trainer: Any = build_trainer(cfg)
    if way.official and way.prec == "fp32":  # the official code leaves some weights in fp16
        trainer.model.float()
    # The first step of a run is checked, and waits
    trainer.batch_idx = 1
    trainer.num_batches = 10**9
    trainer.set_model_mode("train")
    return trainer


def register_names(way: Namespace) -> None:
    """Register the dataset `Names`."""
    from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
    from open_clip import IMAGENET_CLASSNAMES

    @DATASET_REGISTRY.register(force=True)
    class Names(DatasetBase):
        sentences = getattr(way, "sentences", {})

        def __init__(self, cfg):
            names = list(IMAGENET_CLASSNAMES[: way.classes])
            items = [Datum(label=label, classname=name) for label, name in enumerate(names)]
            super().__init__(train_x=items * way.batch, test=items)


def work_of(way: Namespace) -> tuple[Callable[[], object], Any]:
    """The function to measure, and its device."""
    import torch

    torch.manual_seed(0)
    if way.what == "open_clip":
        return bare_tower(way.test_batch)
    trainer = build(way)
    shape = [way.batch]
    if way.what == "test_batch":
        shape = [1 if way.views else way.test_batch]
    if way.views:
        shape.append(trainer.cfg.TRAINER[way.section].VIEWS)
    images = torch.randn(*shape, 3, *trainer.cfg.INPUT.SIZE)
    batch = {"img": images, "label": torch.arange(shape[0]) % way.classes}
    if trainer.device.type == "cuda":
        batch = {key: value.pin_memory() for key, value in batch.items()}
    if way.what == "train_step":
        return lambda: trainer.forward_backward(batch), trainer.device

    def test_batch() -> None:
        # Published test-time code encodes the texts for each image
        if not way.views or way.form != "fast":
            trainer.set_model_mode("eval")  # a new evaluation
        trainer.model_inference(batch["img"].to(trainer.device))

    return test_batch, trainer.device


def bare_tower(number: int) -> tuple[Callable[[], object], Any]:
    """The pass of open_clip's image tower, on so many images in memory, and its device."""
    import open_clip
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = open_clip.create_model("ViT-B-16", force_quick_gelu=True).eval().to(device)
    images = torch.randn(number, 3, 224, 224, device=device)
    return torch.no_grad()(lambda: model.encode_image(images)), device


def measure(way: Namespace) -> dict:
    """Median seconds of a step, the memory that it needs beyond weights and prompts, and a GPU's
    launches and waits.
    """
    import torch
    from torch.utils.benchmark import Timer

    torch.set_num_threads(way.threads)
    step, device = work_of(way)
    before = peak(device)
    step()  # a warm-up, which also computes what is computed once in a run
    record = {"mb": (peak(device, reset=False) - before) / 2**20}
    timer = Timer("step()", globals={"step": step}, num_threads=way.threads)
    record["seconds"] = timer.blocked_autorange(min_run_time=way.seconds).median
    return record | (on_cuda(step) if device.type == "cuda" else {})


def on_cuda(step: Callable[[], object]) -> dict:
    """The launches of a step, and how often the CPU waits for the device in it."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        step()
        torch.cuda.synchronize()
    launches = sum(
        event.count for event in profiled.key_averages() if event.key.startswith(LAUNCHES)
    )
    return {"launches": launches, "waits": sum(WAITS in str(warning.message) for warning in caught)}


def peak(device: Any, reset: bool = True) -> int:
    """The largest memory in bytes since the last reset: of the GPU, or of the process as Linux
    counts it.
    """
    import torch

    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    settings = Namespace(**json.loads(sys.argv[1]))
    home = ROOT if settings.official else Path(settings.checkout)  # of the toolbox
    sys.path[0:1] = [str(home), str(home / "toolbox")]  # instead of benchmarks/
    print(json.dumps(measure(settings)))
