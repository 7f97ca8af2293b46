"""Checks of a method's own code, for its tests: they find mistakes that give wrong numbers without
an error.
"""

from contextlib import redirect_stdout
from io import StringIO
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import build_trainer
from dassl.utils import set_random_seed
from PIL import Image
from torch import Tensor
from yacs.config import CfgNode

from clip import TOWERS
from clip.random_weights import random_clip

from .build import assemble_model, unregistered, untrained
from .method import Classes
from .prompted import PromptedCLIP

TOLERANCE = 1e-3  # of the largest value
SIDE = 32  # pixels


class Noise(DatasetBase):
    """Four training images, two for validation and two for tests of each of three classes."""

    def __init__(self, cfg: CfgNode):
        rng = np.random.default_rng(0)
        parts: dict[str, list[Datum]] = {"train_x": [], "val": [], "test": []}
        for part, count in {"train_x": 4, "val": 2, "test": 2}.items():
            for label, name in enumerate(("cat", "red fox", "lake")):
                for number in range(count):
                    file = Path(cfg.DATASET.ROOT, f"{part}_{label}_{number}.png")
                    Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(file)
                    parts[part].append(Datum(str(file), label, classname=name))
        super().__init__(**parts)


def assert_method_works(name: str, **settings: Any) -> None:
    """Train a method for one epoch, on noise and a small CLIP with random weights, and check what
    it has done.

    Args:
        name: of the method in Dassl's registry.
        settings: of its section, such as `N_CTX=4`.

    Raises AssertionError if a learned module is not in the prompt learner, a tensor that requires
    gradients is no Parameter, the features of images are longer than 1, the checkpoint lacks
    something that a test reads, or the fast towers give other logits than the plain ones. Any other
    error is one of the method.
    """
    noise = patch.dict(DATASET_REGISTRY._obj_map, Noise=Noise)
    with TemporaryDirectory() as folder, noise, redirect_stdout(StringIO()):
        set_random_seed(1)
        trainer: Any = build_trainer(configuration(name, settings, Path(folder)))
        trained = trainer.method
        model = trained.model
        kind = type(model.prompt_learner)
        added = unregistered(model)
        assert not (loose := untrained(model)), (
            f"{name}: {loose[0]} requires a gradient and is no nn.Parameter"
        )
        assert not added, (
            f"{name}: {added[0]} is not in the prompt learner: it is neither trained nor saved"
        )
        trainer.train()
        dataset = trainer.dm.test_loader.dataset
        images = torch.stack([dataset[number]["img"] for number in range(len(dataset))]).to(
            trained.device
        )
        if kind.changes_image:
            with torch.no_grad():
                longest = float(model.image_features(images).norm(dim=-1).max())
            remedy = "return them of unit length, by `trainers.base.prompted.normalize`"
            assert longest < 1.01, (
                f"{kind.__name__}.image returns features of length {longest:.3g}: {remedy}"
            )
        classes = Classes(trained.class_names, trained.dataset_template, trained.sentences)
        loaded = type(trained)(trained.cfg, classes, trained.device)
        assemble_model(loaded, clip=model.frozen)
        if trained.learns:
            loaded.load_model(trainer.output_dir)
        remedy = "make what a test reads a Parameter or a persistent Buffer of the prompt learner"
        what = f"{name} gives other logits than a model that reads its checkpoint"
        logits = []
        for method in (trained, loaded):
            method.model.eval()
            logits.append(method.model_inference(images))
        assert same(*logits), f"{what}: {remedy}"
        remedy = "an adapter may not mix tokens, nor draw random numbers without `is_stochastic`"
        assert towers_agree(model, images), (
            f"the fast towers give other logits of {name} than the plain ones: {remedy}"
        )


def configuration(name: str, settings: dict[str, Any], folder: Path) -> CfgNode:
    """The configuration of the run that `assert_method_works` checks, with its backbone in the same
    folder.
    """
    from trainers import extend_cfg, methods  # here, as the methods import this package

    backbone = folder / "backbone.pt"
    vision = {"image_size": SIDE, "patch_size": 16, "layers": 12, "width": 64}
    torch.save(
        random_clip("ViT-B-16", vision, {"layers": 12, "width": 64}, 64).state_dict(), backbone
    )
    cfg = get_cfg_default()
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"
    extend_cfg(cfg, name)
    section = methods()[name].section()
    cfg.TRAINER[section].update({"PREC": "fp32", **settings})
    cfg.TRAINER.NAME = name
    cfg.DATASET.NAME = "Noise"
    cfg.MODEL.BACKBONE.NAME = str(backbone)
    cfg.DATASET.ROOT = str(folder)
    cfg.OUTPUT_DIR = str(folder / "run")
    cfg.INPUT.SIZE = (SIDE, SIDE)
    cfg.INPUT.TRANSFORMS = ("normalize",)
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 4
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.OPTIM.NAME = "sgd"
    cfg.OPTIM.LR = 0.01
    cfg.OPTIM.MAX_EPOCH = 1
    cfg.SEED = 1
    cfg.TEST.FINAL_MODEL = "last_step"
    cfg.freeze()
    return cfg


def towers_agree(model: PromptedCLIP, images: Tensor) -> bool:
    """Whether fast and plain towers give the same logits, in training and in a test, with random
    learned tensors.
    """
    numbers = torch.Generator().manual_seed(0)
    logits = list[Tensor]()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=numbers).to(parameter)
    for training, form in product((True, False), ("plain", "fast")):
        model.towers = TOWERS[form]
        model.train(training)
        torch.manual_seed(0)
        logits.append(model(images).detach())
    return same(*logits[:2]) and same(*logits[2:])


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal up to rounding."""
    return bool((one - other).abs().max() <= TOLERANCE * one.abs().max())
