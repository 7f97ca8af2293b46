"""Stand-ins for real data: images of one colour and noise in EuroSAT's layout, and the settings of a run on them."""

import json
import random
from pathlib import Path

import numpy as np
from dassl.config import get_cfg_default
from PIL import Image

import train


def write_eurosat(root: Path, classnames: list[str], train=2, val=1, test=2, size=32) -> Path:
    """Write `eurosat/2750/<label>/*.png` and the split file; returns the split file."""
    rng = np.random.default_rng(0)
    split = {"train": [], "val": [], "test": []}
    images = root / "eurosat/2750"
    for label, name in enumerate(classnames):
        (images / str(label)).mkdir(parents=True, exist_ok=True)
        colour = rng.integers(0, 256, 3)
        for part, count in (("train", train), ("val", val), ("test", test)):
            for number in range(count):
                pixels = (colour + rng.integers(-40, 40, (size, size, 3))).clip(0, 255).astype(np.uint8)
                path = f"{label}/{part}_{number}.png"
                Image.fromarray(pixels).save(images / path)
                split[part].append([path, label, name])
    for rows in split.values():
        random.Random(0).shuffle(rows)
    file = root / "eurosat/split_zhou_EuroSAT.json"
    file.write_text(json.dumps(split))
    return file


def make_cfg(trainer: str, root: Path, backbone: Path, output: Path, *overrides):
    """A frozen configuration as train.py makes it, for a small backbone of 32 px."""
    cfg = get_cfg_default()
    train.extend_cfg(cfg)
    pairs = {
        "TRAINER.NAME": trainer,
        "DATASET.NAME": "EuroSAT",
        "DATASET.ROOT": str(root),
        "MODEL.BACKBONE.NAME": str(backbone),
        "OUTPUT_DIR": str(output),
        "INPUT.SIZE": (32, 32),
        "INPUT.TRANSFORMS": ("random_resized_crop", "random_flip", "normalize"),
        "DATALOADER.NUM_WORKERS": 0,
        "DATALOADER.TRAIN_X.BATCH_SIZE": 4,
        "OPTIM.NAME": "sgd",
        "SEED": 1,
    }
    pairs |= dict(zip(overrides[::2], overrides[1::2], strict=True))
    train.merge(cfg, lambda: cfg.merge_from_list([item for pair in pairs.items() for item in pair]))
    cfg.freeze()
    return cfg
