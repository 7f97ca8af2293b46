"""Every method on features computes what its published code computes: texts, start, steps,
searches, logits.

`--golden DIR` runs other figures of the same form. Inputs are images (through the towers) or
features (drawn as the files say). Tolerances are those of test_golden.py.
"""

import pytest
import torch
from dassl.engine import build_trainer
from drawn import make_cfg, write_eurosat
from golden_checks import FORMS, learned_of
from golden_inputs import Inputs
from marks import case_of, golden, of_json, to_json
from test_golden import close, shapes_of

import trainers
from clip.random_weights import random_clip, random_tensor
from trainers.base.feature_method import FittedMethod
from trainers.base.features import Support

OF_OPTIM = {"LR": "OPTIM.LR", "EPS": "OPTIM.ADAM_EPS", "MAX_EPOCH": "OPTIM.MAX_EPOCH"}
OF_OPTIM |= {"BATCH_SIZE": "DATALOADER.TRAIN_X.BATCH_SIZE"}
OPTIMISER = {
    "name": "NAME",
    "lr": "LR",
    "momentum": "MOMENTUM",
    "weight_decay": "WEIGHT_DECAY",
    "eps": "ADAM_EPS",
}


def is_method(figures):
    """Of a method on features; those that change the text alone are in test_golden_texts.py."""
    case = case_of(figures)
    of_others = {"sentences", "runs", "points"}
    return "input" in case and "kind" not in case and not of_others & figures.keys()


def pytest_generate_tests(metafunc):
    # `make check` has one method, as the other ones take longer
    golden(metafunc, "figures", is_method, ("task_res",))


@pytest.fixture
def built(figures, backbones, stand_in, tmp_path):
    """The trainer of a case, started from the features of the file, and these."""
    case = figures["case"]
    dataset = case.get("dataset", "EuroSAT")
    stand_in(dataset)
    if case["input"] == "images":
        arch = case["arch"]
        size = arch["image_resolution"]
        backbone = backbones(size, arch["patch_size"], arch["vision_layers"], arch["text_layers"])
        names = case["classnames"]
        labels = case.get("images", {}).get("support_labels") or figures["labels"]
    else:
        f = case["features"]
        size = 32
        width = f["pre_dim"] if case.get("projection") == "visual.proj" else 64
        backbone = backbones(size, 16, 1, 1, width, 64, f["dim"])
        if case.get("projection", "visual.proj") != "visual.proj":
            backbone = tmp_path / "resnet.pt"
            vision = {"layers": [1, 1, 1, 1], "width": f["pre_dim"] // 32, "image_size": size}
            torch.save(
                random_clip("RN50", vision, {"width": 64, "layers": 1}, f["dim"]).state_dict(),
                backbone,
            )
        labels = f["support_labels"]
        names = [f"class {number}" for number in range(f["classes"])]
    file = write_eurosat(tmp_path, names)
    rows = of_json(file)
    labels = [*labels, *{*range(len(names))} - {*labels}]  # a split has images of each class
    rows["train"] = [[f"{label}/train_0.png", label, names[label]] for label in labels]
    to_json(file, rows)
    kind = trainers.methods()[case["trainer"]]
    section = kind.section()
    known = kind.Settings.schema()
    options = {
        "INPUT.SIZE": (size, size),
        "OPTIM.LR_SCHEDULER": "single_step",
        "OPTIM.WARMUP_EPOCH": -1,
    }
    options |= {"DATASET.NAME": dataset, f"TRAINER.{section}.PREC": "fp32"}
    options["DATALOADER.TRAIN_X.BATCH_SIZE"] = 256
    if issubclass(kind, FittedMethod) or not figures.get("losses"):
        options["OPTIM.MAX_EPOCH"] = 1
    given = figures.get("optimizer", {})
    options |= {
        f"OPTIM.{OPTIMISER[key]}": value for key, value in given.items() if key in OPTIMISER
    }
    for key, value in case.get("cfg", {}).items():
        if key == "SHOTS":
            continue
        key = "AUGMENT_EPOCH" if key == "VIEWS" else key
        key = "STEPS" if key == "MAX_EPOCH" and "STEPS" in known else key
        options[f"TRAINER.{section}.{key}" if key in known else OF_OPTIM[key]] = value
    if kind.needs_sentences:
        count = case.get("features", {}).get("sentences")
        sentences = case.get("sentences") or {name: ["a text"] * (count - 1) for name in names}
        to_json(tmp_path / "sentences.json", sentences)
        options["DATASET.SENTENCES"] = str(tmp_path / "sentences.json")
    torch.manual_seed(1)
    pairs = [item for pair in options.items() for item in pair]
    trainer = build_trainer(make_cfg(case["trainer"], tmp_path, backbone, tmp_path / "out", *pairs))
    if case["input"] == "images":
        assert list(trainer.method.templates) == case["templates"]
    inputs = Inputs(figures, trainer)
    trainer.model.clip.logit_scale.data.fill_(case.get("logit_scale", 4.6052))
    if inputs.sentences is not None:
        trainer.method.sentence_features = inputs.sentences
    elif inputs.texts is not None:
        trainer.method.set_texts(inputs.texts)
    val_labels, labels = (
        torch.tensor(each).to(trainer.device) for each in (inputs.val_labels, inputs.support_labels)
    )
    trainer.method.val = inputs.val, val_labels
    trainer.method.begin(Support(inputs.support, labels))
    trainer.set_model_mode("train")
    # The learning rate stays
    trainer.batch_idx = 0
    trainer.num_batches = 10**9
    trainer.epoch = 0
    if "SHOTS" in case.get("cfg", {}):
        trainer.cfg.defrost()
        trainer.cfg.DATASET.NUM_SHOTS = case["cfg"]["SHOTS"]
    return trainer, inputs


def test_method(figures, built):
    trainer, inputs = built
    learned = learned_of(trainer, figures)
    for name, how in figures.get("start", {}).items():
        if "recipe" in how:
            drawn = random_tensor(name, tuple(learned[name].shape)).to(trainer.device)
            learned[name].data = drawn + (learned[name].data if "published" in how else 0)
    text = trainer.model.class_texts if "projection" not in figures["case"] else inputs.texts
    reads_text = trainer.method.spec.reads_text
    # The file has them before they are made unit
    if reads_text and "text_norms" in figures and trainer.method.spec.unit_text:
        text = text * torch.tensor(figures["text_norms"], device=text.device)[:, None]
    if reads_text and "text_first8" in figures:
        close(text[:, :8], figures["text_first8"], 1e-4)
    if reads_text and "text_norms" in figures:
        assert text.norm(dim=1).tolist() == pytest.approx(figures["text_norms"], rel=1e-4)
    if "checkpoint_keys" in figures:
        state = trainer.method.saved_module().state_dict()
        assert shapes_of(state) == figures["checkpoint_keys"]
    FORMS[figures["case"]["trainer"]](trainer, inputs, figures, learned)
