"""A training step of official code, on this project's toolbox; `gpu_check.py --official DIR` starts it.

    python benchmarks/official.py DIR --trainer MPL --backbone FILE --classes 50 --prec fp16

It runs the code in DIR, a checkout in the form of CoOp's: train.py with `extend_cfg`, the packages clip, datasets and
trainers, and configs/. Each method has the settings of its YAML file there. In fp32 all weights are made fp32 after the
model is built, because the official code leaves some in fp16. The last line printed is a record in JSON.
"""

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

import torch

from benchmarks.one_step import measured

BATCH, SIDE = 4, 224
PARTS = ("train.py", "clip/clip.py", "datasets", "trainers", "configs/trainers")


def missing(checkout: Path) -> str:
    """The missing parts of a checkout; empty if it is complete."""
    return next((part for part in PARTS if not (checkout / part).exists()), "")


def build(args: argparse.Namespace):
    """The trainer of the official code, on a dataset of class names without images."""
    sys.path[:] = [str(args.checkout), *(path for path in sys.path if Path(path).resolve() != ROOT)]
    from dassl.config import get_cfg_default
    from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
    from dassl.engine import build_trainer
    from open_clip import IMAGENET_CLASSNAMES

    @DATASET_REGISTRY.register(force=True)
    class Names(DatasetBase):
        def __init__(self, cfg):
            items = [
                Datum(label=label, classname=name) for label, name in enumerate(IMAGENET_CLASSNAMES[: args.classes])
            ]
            super().__init__(train_x=items * BATCH, test=items)

    import_module("clip.clip")._download = lambda *arguments, **options: args.backbone
    cfg = get_cfg_default()
    import_module("train").extend_cfg(cfg)
    cfg.merge_from_file(str(args.checkout / "configs/trainers" / args.trainer / args.config))
    cfg.TRAINER.NAME, cfg.DATASET.NAME, cfg.MODEL.BACKBONE.NAME, cfg.SEED = args.trainer, "Names", "ViT-B/16", 1
    cfg.TRAINER[args.trainer.upper()].PREC, cfg.DATALOADER.NUM_WORKERS = args.prec, 0
    trainer = build_trainer(cfg)
    if args.prec == "fp32":
        trainer.model.float()
    trainer.batch_idx, trainer.num_batches = 1, 10**9
    trainer.set_model_mode("train")
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--trainer", required=True)
    parser.add_argument("--config", required=True, help="its YAML file, in configs/trainers/TRAINER")
    parser.add_argument("--backbone", required=True, help="weights of ViT-B/16's widths")
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--prec", choices=("fp32", "fp16", "amp"), default="fp16")
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--times", type=int, default=10)
    args = parser.parse_args()
    args.checkout = args.checkout.resolve()
    trainer = build(args)
    batch = {"img": torch.randn(BATCH, 3, SIDE, SIDE), "label": torch.arange(BATCH) % args.classes}
    if trainer.device.type == "cuda":
        batch = {key: value.pin_memory() for key, value in batch.items()}
    found = measured(lambda: trainer.forward_backward(batch), trainer.device, args.warm_up, args.times)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
