"""Checks of a method's own code, for its tests: they find mistakes that give wrong numbers without
an error.
"""

from contextlib import redirect_stdout
from functools import cache
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

from clip import CLIP, TOWERS, TextPrompts, private_copy, tokenizer_of
from clip.random_weights import random_clip
from common.errors import UsageError, check_name

from .build import assemble_model, backbone_of, unregistered, untrained
from .method import Classes
from .mistakes import (
    check_hooks,
    check_schedule,
    check_settings,
    named,
    watch_gradients,
    with_parts,
)
from .prompted import PromptedCLIP, normalize

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
    gradients is not a Parameter, a parameter gets no gradient, features of images are longer than
    1, an answer depends on more than its image, the frozen CLIP is changed, a fact such as
    `installs` is not true, the checkpoint lacks something that a test reads, or the fast towers
    give other logits than the plain ones; a hook is misspelt, or returns something else; or the
    method raises an error, which it names with the file. UsageError for wrong settings.
    """
    from trainers import methods  # here, as the methods import this package

    noise = patch.dict(DATASET_REGISTRY._obj_map, Noise=Noise)
    with TemporaryDirectory() as folder, noise, redirect_stdout(StringIO()):
        set_random_seed(1)
        check_name(name, methods(), "method")
        kind = methods()[name]
        check_settings(kind)
        with named(kind):
            trainer: Any = build_trainer(configuration(name, settings, Path(folder)))
            check_code(trainer.method)
            without = watch_gradients(trainer.method)
            with patch.object(trainer.method, "loss", with_parts(trainer.method.loss, name)):
                trainer.train()
            check_results(trainer)
            fault = f"{name}: the parameter {min(without, default='')} gets no gradient"
            remedy = "use it in the loss, or make it a Buffer, or set requires_grad=False"
            assert kind.fits or not without, f"{fault}: {remedy}"


def check_code(method: Any) -> None:
    """Raise AssertionError for mistakes that a model shows before it is trained."""
    name = type(method).__name__
    check_hooks(method)
    check_schedule(method.model.prompt_learner)
    loose = untrained(method.model)
    assert not loose, f"{name}: {loose[0]} requires a gradient and is not an nn.Parameter"
    parameters = [key for key, _ in method.model.named_parameters()]
    assert method.learns or not parameters, f"{name} says learns = False and has {parameters[0]}"
    drawn = "the training images differ by seed"
    assert method.seeded or not method.learns, f"{name} says seeded = False and learns: {drawn}"
    added = unregistered(method.model)
    fault = "is not in the prompt learner: it is neither trained nor saved"
    assert not added, f"{name}: {added[0]} {fault}"


def check_results(trainer: Any) -> None:
    """Raise AssertionError for mistakes that a trained model shows."""
    method = trainer.method
    name = type(method).__name__
    model = method.model
    dataset = trainer.dm.test_loader.dataset
    images = torch.stack([dataset[number]["img"] for number in range(len(dataset))])
    images = images.to(method.device)
    model.eval()
    check_answers(method, images)
    check_facts(method, images)
    loaded = reloaded(method, trainer.output_dir, method.class_names)
    remedy = "make what a test reads a Parameter or a persistent Buffer of the prompt learner"
    fault = f"{name} gives other logits than a model that reads its checkpoint"
    logits = method.model_inference(images), loaded.model_inference(images)
    assert same(*logits), f"{fault}: {remedy}"
    check_new_classes(method, trainer.output_dir, images)
    check_texts(model, images)
    remedy = "an adapter may not mix tokens, nor draw random numbers without `is_stochastic`"
    fault = f"the fast towers give other logits of {name} than the plain ones"
    assert towers_agree(model, images), f"{fault}: {remedy}"


@torch.no_grad()
def check_answers(method: Any, images: Tensor) -> None:
    """Raise AssertionError if an answer depends on more than its image, or the frozen CLIP is not
    that of its file any more.
    """
    name = type(method).__name__
    logits = method.model_inference(images)
    fault = f"{name} gives other logits for the same images a second time"
    remedy = "a test may not draw random numbers, nor keep what it has seen outside `new_state`"
    assert same(logits, method.model_inference(images)), f"{fault}: {remedy}"
    alone = torch.cat([method.model_inference(image[None]) for image in images])
    fault = f"{name} gives an image other logits alone than in a batch"
    is_same = method.together or same(logits, alone)
    assert is_same, f"{fault}: a test may compute nothing over a batch"
    original = backbone_of(method).to(images.device)
    fault = f"{name} changes the frozen CLIP"
    is_same = same(ends(method.model.frozen, images), ends(original, images))
    assert is_same, f"{fault}: put changes into the private copy that `install` gets"


def check_new_classes(method: Any, folder: str, images: Tensor) -> None:
    """Raise AssertionError if a method says that it can tell new classes, and cannot."""
    if not (method.learns and method.transfers):
        return
    try:
        logits = reloaded(method, folder, ["dog", "lake"]).model_inference(images)
    except UsageError as error:
        fault = f"{type(method).__name__} says transfers = True and cannot tell new classes"
        remedy = "name tensors with values for each class in `of_learned_classes`"
        raise AssertionError(f"{fault} ({error.fault}): {remedy}") from error
    assert logits.shape[1] == 2, (
        f"{type(method).__name__} has {logits.shape[1]} logits for two new classes"
    )


def check_texts(model: PromptedCLIP, images: Tensor) -> None:
    """Raise AssertionError if texts in which nothing is learned differ from step to step, and the
    prompt learner denies it.
    """
    learner = model.prompt_learner
    model.train()
    model.towers = TOWERS["plain"]  # it encodes texts at each step
    one = model.output(images).text_feature
    other = model.output(images).text_feature
    is_frozen = one.numel() > 0 and not one.requires_grad
    if is_frozen and not learner.random_text:
        deny(learner, "random_text", one, other)


def reloaded(method: Any, folder: str, class_names: list[str]) -> Any:
    """The method of a prediction for some classes, with what a run of the method has saved in a
    folder.
    """
    classes = Classes(class_names, method.dataset_template, method.sentences)
    loaded = type(method)(method.cfg, classes, method.device)
    assemble_model(loaded, clip=method.model.frozen)
    if method.learns:
        loaded.load_model(folder)
    loaded.model.eval()
    return loaded


@torch.no_grad()
def check_facts(method: Any, images: Tensor) -> None:
    """Raise AssertionError if a method, its model or its prompt learner denies a fact that is true,
    or image features are longer than 1.
    """
    model = method.model
    learner = model.prompt_learner
    output = model.output(images)
    if learner.changes_image:
        longest = float(output.image.norm(dim=-1).max())
        fault = f"{type(learner).__name__}.image returns features of length {longest:.3g}"
        remedy = "return them of unit length, by `trainers.base.prompted.normalize`"
        assert longest < 1.01, f"{fault}: {remedy}"
    own_image = learner.image(output.tower, model.classes_learned)
    unit_image = normalize(output.tower.feature)
    if not learner.installs:
        copy = private_copy(model.frozen)
        learner.install(copy)
        deny(learner, "installs", ends(copy, images), ends(model.frozen, images))
    if not learner.changes_image:
        deny(learner, "changes_image", own_image, unit_image)
    if not model.own_image:
        deny(model, "own_image", model.of_tower(output.tower), own_image)
    if not model.own_logits:
        similarities = model.scale * (output.text @ unit_image.unsqueeze(-1)).squeeze(-1)
        deny(model, "own_logits", model.logits(unit_image, output.text), similarities)
    if not (model.own_output or model.own_logits):
        deny(model, "own_output", output.logits, model.logits(output.image, output.text))
    if not getattr(method, "streams", True) and method.new_state():
        raise AssertionError(f"{type(method).__name__} says streams = False and has a state")


def deny(owner: Any, fact: str, found: Tensor, expected: Tensor) -> None:
    """Raise AssertionError if a fact is true, by what its hook gives and what it would give."""
    fault = f"{type(owner).__name__} says {fact} = False, which is not true"
    assert same(found, expected), fault


def ends(clip: CLIP, images: Tensor) -> Tensor:
    """The features of images and of a text, (images + 1, joint)."""
    ids = tokenizer_of(clip)(["a photo"]).to(images.device)
    towers = TOWERS["plain"]
    text = towers.encode_text(clip, TextPrompts(ids))
    return torch.cat([towers.encode_image(clip, images).feature, text]).float()


def configuration(name: str, settings: dict[str, Any], folder: Path) -> CfgNode:
    """The configuration of the run that `assert_method_works` checks, with its backbone in the same
    folder.
    """
    from trainers import extend_cfg, methods  # here, as the methods import this package

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
def weights() -> dict[str, Tensor]:
    """The small CLIP's, which take longer to draw than to write."""
    vision = {"image_size": SIDE, "patch_size": 16, "layers": 12, "width": 64}
    return random_clip("ViT-B-16", vision, {"layers": 12, "width": 64}, 64).state_dict()


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
