"""Golden files hold numbers of published code: read them, build what they describe, and compare.

`--golden DIR` reads other files of the same form. Tolerances are those with which the figures were
published: the published code itself differs by up to 2e-5 between instruction sets.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dassl.engine import build_trainer
from drawn import make_cfg, write_eurosat
from marks import case_of, to_json
from torch.nn.functional import normalize

import trainers
from clip.random_weights import random_tensor
from trainers.base.method import Classes
from trainers.base.trainer import assemble_model

BEFORE = 2e-4
AFTER = 1e-3
# Of numbers by their keys, the first that fits: relative, absolute, or to a part of the largest.
# Others are equal.
TOLERANCES = {
    "logits*before": {"abs": BEFORE},
    "logits_zeroshot*": {"abs": BEFORE},
    "logits*": {"abs": AFTER},
    "loss*": {"abs": 1e-3},
    "grad_norms*": {"rel": 1e-3, "abs": 1e-4},
    "param_norms*": {"rel": 1e-4},
    "param_change_norms*": {"rel": 1e-3, "abs": 1e-4},
    "*first8": {"abs": 1e-5},
    "lrs*": {"rel": 1e-9},
}
COPIES = {
    "grad_norms*": {"rel": 1e-3, "abs": 1e-5},
    "param_norms*": {"rel": 2e-5},
    "param_change_norms*": {"rel": 2e-3, "abs": 1e-6},
    "start*": {"abs": 1e-4},
}
GRADIENTS = {"grad_norms*": {"rel": 1e-3}}
NEAR = {"logits*": {"largest": 1e-5}, "b": {"largest": 1e-5}}
PROJECTED = GRADIENTS | {
    "param_norms*": {"rel": 2e-5},
    "param_change_norms*": {"rel": 2e-3},
}
OF_METHOD = {
    **dict.fromkeys(("TwoStage", "CLIPFit", "CLIPSVD"), COPIES),
    "SkipTuning": COPIES
    | {"param_norms*": {"rel": 1e-4}, "param_change_norms*": {"rel": 3e-3, "abs": 1e-6}},
    **dict.fromkeys(("NLPrompt", "DPC"), GRADIENTS),
    "TipAdapterF": GRADIENTS | {"lrs": {"rel": 1e-4, "abs": 1e-9}, "weight_norm": {"rel": 1e-4}},
    "LPPlusPlus": {
        "grad_norms*": {"rel": 1e-3, "abs": 1e-6},
        "norms": {"rel": 1e-4},
        "alpha_vec": {"largest": 1e-5},
        "lr_*": {"rel": 1e-5},
        "norm": {"rel": 1e-5},
        "bias": {"abs": AFTER},
    },
    **dict.fromkeys(("ProLIP", "RLA"), PROJECTED | {"first8_after": {"abs": 1e-5}}),
    **dict.fromkeys(
        ("GDA", "TIMO"),
        {"logits_zeroshot": {"abs": BEFORE}, **NEAR, "W_norms": {"rel": 1e-4}}
        | {"alpha": {"rel": 1e-6}, "matching_score": {"abs": 1e-5}},
    ),
    "ProKeR": {"logits*": {"abs": 1e-5}},
}


OLD_PARTS = "loss_parts_ce_text_image_kl"


def flat(value: Any, place: str = "") -> dict[str, Any]:
    """Each number or word in a value of JSON or a tensor, by its place."""
    if isinstance(value, torch.Tensor | np.ndarray):
        value = value.tolist()
    if not isinstance(value, dict | list | tuple):
        return {place: value}
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = {f"{place}#": len(value)}
    for key, each in inner:
        found |= flat(each, f"{place}/{key}")
    return found


def agree(found, expected, **tolerance):
    """The same shapes and keys, and equal words and numbers, or these within a tolerance."""
    found = flat(found)
    expected = flat(expected)
    if "largest" in tolerance:
        largest = max(np.abs(value) for place, value in expected.items() if "#" not in place)
        tolerance = {"abs": tolerance["largest"] * largest}
    assert found == (pytest.approx(expected, **tolerance) if tolerance else expected)


def drawn(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def images_of(batch, size, seed=7):
    return drawn(seed, batch, 3, size, size)


def image_features(f, seed, labels, views=1, means=10, classes=None):
    """Features that a file describes, (views, images, dim)."""
    mean = drawn(means, classes or f["classes"], f["dim"])[labels]
    noise = f["image_noise"] * drawn(seed, views, len(labels), f["dim"])
    return f.get("image_scale", 1) * (drawn(12, 2, f["dim"])[0] + f["image_mean"] * mean + noise)


def text_features(f, seed=11, classes=None, means=10):
    """Features of class texts that a file describes, (classes, dim)."""
    classes = classes or f["classes"]
    mean = f["text_mean"] * drawn(means, classes, f["dim"])
    noise = f["text_noise"] * drawn(seed, classes, f["dim"])
    return f.get("text_scale", 1) * (drawn(12, 2, f["dim"])[1] + mean + noise)


def drawn_features(f):
    """The unit features of test images and of class texts that a file describes."""
    images = image_features(f, 9, f["test_labels"])[0]
    return normalize(images, dim=1), normalize(text_features(f), dim=1)


def settings_of(values: dict, prefix: str = "") -> dict:
    """Settings by the names here: those of a group (TDA's positive cache) with its name before
    them.
    """
    found = {}
    for key, value in values.items():
        name = f"{prefix}{key}".upper()
        found |= settings_of(value, f"{name}_") if isinstance(value, dict) else {name: value}
    return found


def shapes_of(tensors):
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def norms_of(tensors):
    return {name: tensor.detach().norm().item() for name, tensor in tensors.items()}


def gradients_of(learned):
    return norms_of({name: parameter.grad for name, parameter in learned.items()})


def copied(tensors):
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def backbone_of(arch, backbones):
    sizes = arch["image_resolution"], arch["patch_size"], arch["vision_layers"], arch["text_layers"]
    return backbones(*sizes, *arch.get("widths", ()))


def build(
    trainer,
    towers,
    settings,
    arch,
    classnames,
    optimizer,
    backbones,
    tmp_path,
    dataset="EuroSAT",
    by_recipe=True,
    options=(),
    **data,
):
    """A trainer on a small CLIP of the recipe's weights, through the ordinary configuration and
    data path. Its learning rate stays.

    `by_recipe`: what it learns starts there, too. `data` are further arguments of `write_eurosat`.
    """
    size = arch["image_resolution"]
    write_eurosat(tmp_path, classnames, **data)
    overrides = {
        "INPUT.SIZE": (size, size),
        "OPTIM.LR_SCHEDULER": "single_step",
        "OPTIM.WARMUP_EPOCH": -1,
        "MODEL.BACKBONE.TOWERS": towers,
        "DATASET.NAME": dataset,
    }
    for key, value in optimizer.items():
        if key != "betas":
            overrides[f"OPTIM.{'ADAM_EPS' if key == 'eps' else key.upper()}"] = value
    section = trainers.methods()[trainer].section()
    for key, value in ({"PREC": "fp32"} | settings).items():
        overrides[f"TRAINER.{section}.{key}"] = value
    overrides |= dict(options)
    pairs = [item for pair in overrides.items() for item in pair]
    backbone = backbone_of(arch, backbones)
    # So that the numbers of a CLIP's constructor are drawn for the first case only
    torch.manual_seed(1)
    trainer = build_trainer(make_cfg(trainer, tmp_path, backbone, tmp_path / "out", *pairs))
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters() if by_recipe else ():
            parameter.copy_(random_tensor(name, tuple(parameter.shape)))
    trainer.method.schedule_steps = False
    trainer.batch_idx = 0
    trainer.num_batches = 10**9
    return trainer


def for_classes(trainer, names):
    """The method for other classes, with the tensors of a checkpoint of the trainer."""
    names = [name.replace("_", " ") for name in names]
    other = type(trainer.method)(
        trainer.cfg,
        Classes(names, trainer.method.dataset_template, trainer.method.sentences),
        trainer.device,
    )
    assemble_model(other, trainer.cfg.MODEL.BACKBONE.TOWERS, trainer.model.frozen)
    state = copied(trainer.method.saved_module().state_dict())
    other.checkpoints.load_prompts(
        {"state_dict": state, "epoch": 1, "metadata": trainer.checkpoint_metadata()}, "a file"
    )
    other.model.eval()
    return other


@dataclass
class Golden:
    """A golden file, and the surroundings in which its case is built."""

    figures: Any
    towers: str
    backbones: Callable
    tmp_path: Path
    patch: pytest.MonkeyPatch

    @property
    def case(self) -> dict:
        return case_of(self.figures)

    def of(self, figures) -> "Golden":
        """The same surroundings for other figures."""
        return Golden(figures, self.towers, self.backbones, self.tmp_path, self.patch)

    @property
    def method(self) -> str:
        return "+".join(self.case[key] for key in ("trainer", "base") if key in self.case)

    def build(self, settings=None, optimizer=None, options=(), **given):
        """The trainer of the case, with the settings of the file where none are given."""
        case = self.case
        if settings is None:
            settings = case["cfg"] | case.get("base_cfg", {})
        if optimizer is None:
            optimizer = self.figures.get("optimizer", {})
        sizes = case["arch"], case["classnames"], optimizer, self.backbones, self.tmp_path
        given.setdefault("dataset", case.get("dataset", "EuroSAT"))
        return build(self.method, self.towers, settings, *sizes, options=options, **given)

    def sentences(self) -> dict:
        """Options that give the sentences of the case, if it has any, for its classes."""
        texts = self.case.get("sentences", {})
        own = {name.replace("_", " ") for name in self.case["classnames"]}
        texts = {name: texts[name] for name in texts if name.replace("_", " ") in own}
        to_json(self.tmp_path / "given.json", texts)
        return {"DATASET.SENTENCES": str(self.tmp_path / "given.json")} if texts else {}

    def images(self, trainer):
        images = images_of(self.case["batch"], self.case["arch"]["image_resolution"])
        return images.to(trainer.device)

    def batch(self, images):
        return {"img": images, "label": torch.tensor(self.figures["labels"]).to(images.device)}

    def same(self, key, found, within=None, **tolerance):
        """`found` is what the file has under a key. A function is called only if it has the key."""
        figures = self.figures if within is None else within
        if callable(found):
            if key not in figures:
                return
            found = found()
        agree(found, figures[key], **(tolerance or self.tolerance(key)))

    def tolerance(self, key) -> dict:
        own = OF_METHOD.get(self.case.get("trainer"), {})
        for pattern, tolerance in (*own.items(), *TOLERANCES.items()):
            if fnmatch(key, pattern):
                return tolerance
        return {}

    def learned(self, parameters):
        """The trainable tensors by name: those of the file, and no others but idle ones."""
        parameters = dict(parameters)
        idle = self.figures.get("in_optimizer_but_without_gradient", {})
        assert shapes_of(parameters) == self.figures["trainable"] | idle
        return {name: parameters[name] for name in self.figures["trainable"]}

    def logits(self, trainer, images, when, by_classes=False):
        """Those of the case, of other classes and of all; and `by_classes` those for learned
        classes, where a method reads these in another way.
        """
        new = self.case.get("new_classnames", [])
        for key, names in {"new": new, "union": trainer.method.class_names + new}.items():

            def of_others(names=names):
                return for_classes(trainer, names).model_inference(images)

            self.same(f"logits_{key}_{when}", of_others)
        for key in ("", "fusion_", "train_"):
            key = f"logits_{key}{when}"
            if by_classes:
                trainer.model.classes_learned = key != f"logits_{when}"
            if key in self.figures:
                trainer.set_model_mode("train" if "train" in key else "eval")
                self.same(key, trainer.model_inference(images))
        trainer.set_model_mode("train")

    def steps(self, trainer, batches, learned, suffix="", start=None):
        """Training steps: losses and their parts, the first gradient, and the end."""
        start = start or copied(learned)
        rates = []
        logged = []
        for batch in batches:
            rates.append(trainer.get_current_lr())
            losses = trainer.forward_backward(batch)
            logged.append({name: float(value) for name, value in losses.items()})
            if len(logged) == 1:
                self.same(f"grad_norms{suffix}", gradients_of(learned))
        self.same(f"losses{suffix}", [step["loss"] for step in logged])
        for key in {"loss_parts", OLD_PARTS} & self.figures.keys():
            self.same(key, self.parts_of(logged, key))
        self.same(f"lrs{suffix}", lambda: rates)
        self.same("projected", lambda: [bool(step["projected"]) for step in logged])
        self.end(learned, start, suffix)

    def parts_of(self, logged, key="loss_parts"):
        """The parts of each step's loss, in the form in which the file has them."""
        found = []
        for step, parts in zip(logged, self.figures[key], strict=True):
            names = ("ce", "text", "image", "kl") if key == OLD_PARTS else parts
            values = [step.get(f"loss_{name}", step.get(f"loss_reg_{name}")) for name in names]
            found.append(values if key == OLD_PARTS else dict(zip(names, values, strict=True)))
        return found

    def end(self, learned, start, suffix=""):
        """The norms of the learned tensors, and of what was added to them."""
        after = "_stage1" if f"param_norms{suffix}_stage1" in self.figures else "_after"
        self.same(f"param_norms{after}", norms_of(learned))
        moved = {name: learned[name].detach() - start[name] for name in learned}
        self.same(f"param_change_norms{suffix}", lambda: norms_of(moved))
