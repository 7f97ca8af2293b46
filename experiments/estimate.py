"""How long methods take on this machine, measured with random weights, so that nothing is
downloaded.
"""

import time
from collections.abc import Callable, Sequence

import torch
from dassl.config import get_cfg_default

from clip.random_weights import random_clip
from trainers import methods
from trainers.base.build import assemble_model
from trainers.base.method import Classes

from .configs import config_folder
from .configuration import extend_cfg
from .protocols import recipe

IMAGES = 10  # that are measured


def minutes(
    train: int, test: int, names: Sequence[str], arch: str = "ViT-B-16"
) -> dict[str, float]:
    """The minutes of zero-shot CLIP, of a linear probe and of MPL with its few-shot settings.

    Args:
        train, test: numbers of images.
        names: of the classes.
        arch: an architecture of open_clip.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clip = random_clip(arch).requires_grad_(False).to(device)
    cfg = get_cfg_default()
    extend_cfg(cfg, "MPL")
    cfg.merge_from_file(str(config_folder("MPL") / f"{recipe('MPL', 'few_shot').cfg}.yaml"))
    cfg.merge_from_list(["TRAINER.MPL.PREC", "fp32"])
    mpl = methods()["MPL"](cfg, Classes([name.replace("_", " ") for name in names]), device)
    assemble_model(mpl, clip=clip)
    side = clip.visual.image_size
    height, width = side if isinstance(side, tuple | list) else (side, side)
    images = torch.randn(IMAGES, 3, height, width, device=device)
    batch = cfg.DATALOADER.TRAIN_X.BATCH_SIZE
    labels = torch.zeros(batch, dtype=torch.long, device=device)

    def step() -> None:
        loss, _ = mpl.loss(mpl.model.output(images[:batch]), labels)
        loss.backward()

    with torch.no_grad():
        image = seconds(lambda: clip.encode_image(images)) / IMAGES
    steps = cfg.OPTIM.MAX_EPOCH * max(1, train // batch)
    times = {"zero-shot CLIP": test * image, "linear probe": (train + test) * image}
    return {
        name: value / 60
        for name, value in (times | {"MPL": steps * seconds(step) + test * image}).items()
    }


def seconds(compute: Callable[[], object]) -> float:
    """Of the second of two computations: the first also fills caches."""
    for _ in range(2):
        start = time.perf_counter()
        compute()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return time.perf_counter() - start
