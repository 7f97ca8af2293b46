"""Five checks of a method's own code: mistakes that give wrong numbers without an error."""

from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import torch
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import build_trainer
from dassl.utils import set_random_seed
from PIL import Image

from clip import TOWERS, TextPrompts, tokenizer_of
from clip.random_weights import random_clip
from trainers import extend_cfg, methods
from trainers.base.method import Classes
from trainers.base.trainer import assemble_model, backbone_of

TOLERANCE = 1e-3  # of the largest value
SIDE = 32  # pixels


class Noise(DatasetBase):
    """Four training images, two for validation and two for tests of each of three classes."""

    def __init__(self, cfg):
        rng = np.random.default_rng(0)
        parts = {"train_x": [], "val": [], "test": []}
        for part, count in {"train_x": 4, "val": 2, "test": 2}.items():
            for label, name in enumerate(("cat", "red fox", "lake")):
                for number in range(count):
                    file = Path(cfg.DATASET.ROOT, f"{part}_{label}_{number}.png")
                    Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(file)
                    parts[part].append(Datum(str(file), label, classname=name))
        super().__init__(**parts)


def assert_method_works(name, **settings):
    """Train a method for one epoch, on noise and a small CLIP with random weights, and check it.

    Args:
        name: of the method in Dassl's registry.
        settings: of its section, such as `N_CTX=4`.

    Raises AssertionError if a parameter gets no gradient, an answer depends on more than its image,
    the frozen CLIP is changed, the checkpoint lacks something that a test reads, or the fast towers
    give other logits than the plain ones.
    """
    noise = patch.dict(DATASET_REGISTRY._obj_map, Noise=Noise)
    with TemporaryDirectory() as folder, noise, redirect_stdout(StringIO()):
        set_random_seed(1)
        trainer = build_trainer(configuration(name, settings, Path(folder)))
        method = trainer.method
        without = parameters_without_gradient(method.model)
        trainer.train()
        assert method.trains_in_one_step or not without, f"{min(without)} gets no gradient"
        dataset = trainer.dm.test_loader.dataset
        images = torch.stack([dataset[number]["img"] for number in range(len(dataset))])
        method.model.eval()
        check_answers(method, images.to(method.device))
        check_reloaded(method, trainer.output_dir, images.to(method.device))
        check_towers(method.model, images.to(method.device))


def parameters_without_gradient(model):
    """The names of learned parameters, from which those that get a gradient disappear."""
    without = set()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            without.add(name)
            parameter.register_hook(lambda _, name=name: without.discard(name))
    return without


@torch.no_grad()
def check_answers(method, images):
    """An image has one answer, alone and in a batch, and the frozen CLIP is that of its file."""
    logits = method.model_inference(images)
    alone = torch.cat([method.model_inference(image[None]) for image in images])
    fault = "an image has other logits alone than in a batch"
    assert method.is_transductive or same(logits, alone), fault
    original = backbone_of(method).to(images.device)
    found = features(method.model.frozen, images)
    assert same(found, features(original, images)), "the frozen CLIP is changed"


@torch.no_grad()
def check_reloaded(method, folder, images):
    """A model that reads the checkpoint has the same logits."""
    classes = Classes(method.class_names, method.dataset_template, method.sentences)
    loaded = type(method)(method.cfg, classes, method.device)
    assemble_model(loaded, clip=method.model.frozen)
    if method.learns:
        loaded.load_model(folder)
    loaded.model.eval()
    logits = method.model_inference(images), loaded.model_inference(images)
    assert same(*logits), "a model that reads the checkpoint has other logits"


@torch.no_grad()
def check_towers(model, images):
    """Fast and plain towers give the same logits, in training and in a test, with random learned
    tensors.
    """
    numbers = torch.Generator().manual_seed(0)
    logits = []
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=numbers).to(parameter)
    for training, form in product((True, False), ("plain", "fast")):
        model.towers = TOWERS[form]
        model.train(training)
        torch.manual_seed(0)
        logits.append(model(images))
    is_same = same(*logits[:2]) and same(*logits[2:])
    assert is_same, "the fast towers give other logits than the plain ones"


def features(clip, images):
    """The features of images and of a text, (images + 1, joint)."""
    ids = tokenizer_of(clip)(["a photo"]).to(images.device)
    towers = TOWERS["plain"]
    text = towers.encode_text(clip, TextPrompts(ids))
    return torch.cat([towers.encode_image(clip, images).feature, text]).float()


def configuration(name, settings, folder):
    """The configuration of the run that is checked, with its backbone in the same folder."""
    backbone = folder / "backbone.pt"
    torch.save(weights(), backbone)
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


@cache
def weights():
    """The small CLIP's, which take longer to draw than to write."""
    vision = {"image_size": SIDE, "patch_size": 16, "layers": 12, "width": 64}
    return random_clip("ViT-B-16", vision, {"layers": 12, "width": 64}, 64).state_dict()


def same(one, other):
    """Whether two tensors are equal up to rounding."""
    return bool((one - other).abs().max() <= TOLERANCE * one.abs().max())
