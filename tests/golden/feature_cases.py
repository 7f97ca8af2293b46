"""Trainers of methods on features, started from what a golden file says: features that are drawn, or
encoded from drawn images.
"""

import torch
from dassl.engine import build_trainer
from drawn import make_cfg, write_eurosat
from harness import drawn, image_features, shapes_of, text_features
from marks import of_json, to_json
from torch.nn.functional import normalize

import trainers
from clip.random_weights import random_clip
from trainers.base.feature_method import FittedMethod
from trainers.base.features import Support

OF_OPTIM = {
    "LR": "OPTIM.LR",
    "EPS": "OPTIM.ADAM_EPS",
    "MAX_EPOCH": "OPTIM.MAX_EPOCH",
    "BATCH_SIZE": "DATALOADER.TRAIN_X.BATCH_SIZE",
}
OPTIMISER = {
    "name": "NAME",
    "lr": "LR",
    "momentum": "MOMENTUM",
    "weight_decay": "WEIGHT_DECAY",
    "eps": "ADAM_EPS",
}


class Inputs:
    """The features of a file, all (..., joint) and not normalised, on the trainer's device: drawn
    as the file says, or encoded from drawn images.
    """

    sentences = None  # (classes, sentences, joint), unit
    texts = None

    def __init__(self, figures, trainer):
        case = figures["case"]
        given = case.get("images", case.get("features", {}))
        self.trainer = trainer
        self.support_labels = given.get("support_labels") or figures["labels"]
        self.val_labels = given.get("val_labels", [])
        if case["input"] == "images":
            self.encode_images(case, given)
        elif "projection" in case:
            self.draw_before_the_projection(case["features"])
        else:
            self.draw(case["features"])
        own = case["input"] != "images" or figures.get("labels") == given.get("support_labels")
        self.train = self.support[0] if own else self.test

    def encode_images(self, case, given):
        size = case["arch"]["image_resolution"]
        self.test = self.encode(7, case["batch"], 3, size, size)
        self.support = self.test[None]
        if "support_labels" in given:
            shape = given["views"], len(self.support_labels), 3, size, size
            self.support = self.encode(8, *shape)
        self.val = self.encode(13, len(self.val_labels), 3, size, size)

    def draw_before_the_projection(self, f):
        centre = drawn(12, 1, f["pre_dim"])
        means = drawn(10, f["classes"], f["pre_dim"])

        def images(labels, noise):
            image = centre + f["image_mean"] * means[labels] + f["image_noise"] * noise
            return f["image_scale"] * image

        shape = f["views"], len(f["support_labels"]), f["pre_dim"]
        self.support = images(f["support_labels"], drawn(8, *shape))
        self.test = images(f["test_labels"], drawn(9, len(f["test_labels"]), f["pre_dim"]))
        self.val = self.test[:0]
        text = drawn(18, 1, f["dim"]) + f["text_noise"] * drawn(11, f["classes"], f["dim"])
        self.texts = f["text_scale"] * text

    def draw(self, f):
        device = self.trainer.device
        self.support = image_features(f, 8, self.support_labels, f["views"]).to(device)
        self.test = image_features(f, 9, f["test_labels"])[0].to(device)
        self.val = image_features(f, 13, self.val_labels)[0].to(device)
        self.texts = text_features(f).to(device)
        if "sentences" in f:
            noise = f["sentence_noise"] * drawn(19, f["classes"], f["sentences"], f["dim"])
            noise = f["text_scale"] * noise.to(device)
            self.sentences = normalize(self.texts[:, None] + noise, dim=2)

    @torch.no_grad()
    def encode(self, seed, *shape):
        images = drawn(seed, *shape).flatten(0, -4).to(self.trainer.device)
        return self.trainer.model.image_features(images).unflatten(0, shape[:-3])


def backbone_and_names(golden):
    """A backbone with features of the width of the file, its image size, and the class names."""
    case = golden.case
    if case["input"] == "images":
        arch = case["arch"]
        sizes = arch["patch_size"], arch["vision_layers"], arch["text_layers"]
        size = arch["image_resolution"]
        return golden.backbones(size, *sizes), size, case["classnames"]
    f = case["features"]
    names = [f"class {number}" for number in range(f["classes"])]
    projection = case.get("projection", "")
    if projection in ("", "visual.proj"):
        width = f["pre_dim"] if projection else 64
        return golden.backbones(32, 16, 1, 1, width, 64, f["dim"]), 32, names
    vision = {"layers": [1, 1, 1, 1], "width": f["pre_dim"] // 32, "image_size": 32}
    clip = random_clip("RN50", vision, {"width": 64, "layers": 1}, f["dim"])
    torch.save(clip.state_dict(), golden.tmp_path / "resnet.pt")
    return golden.tmp_path / "resnet.pt", 32, names


def options_of(golden, size, names):
    """Options of the run: those of the file by their names here."""
    case = golden.case
    figures = golden.figures
    kind = trainers.methods()[case["trainer"]]
    section = kind.section()
    known = kind.Settings.schema()
    options = {
        "INPUT.SIZE": (size, size),
        "OPTIM.LR_SCHEDULER": "single_step",
        "OPTIM.WARMUP_EPOCH": -1,
        "DATASET.NAME": case.get("dataset", "EuroSAT"),
        f"TRAINER.{section}.PREC": "fp32",
        "DATALOADER.TRAIN_X.BATCH_SIZE": 256,
    }
    if issubclass(kind, FittedMethod) or not figures.get("losses"):
        options["OPTIM.MAX_EPOCH"] = 1
    for key, value in figures.get("optimizer", {}).items():
        if key in OPTIMISER:
            options[f"OPTIM.{OPTIMISER[key]}"] = value
    for key, value in case.get("cfg", {}).items():
        key = "AUGMENT_EPOCH" if key == "VIEWS" else key
        key = "STEPS" if key == "MAX_EPOCH" and "STEPS" in known else key
        if key != "SHOTS":
            options[f"TRAINER.{section}.{key}" if key in known else OF_OPTIM[key]] = value
    if kind.needs_sentences:
        count = case.get("features", {}).get("sentences")
        sentences = case.get("sentences") or {name: ["a text"] * (count - 1) for name in names}
        to_json(golden.tmp_path / "sentences.json", sentences)
        options["DATASET.SENTENCES"] = str(golden.tmp_path / "sentences.json")
    return options


def built(golden):
    """The trainer of a case, started from the features of the file, and these."""
    case = golden.case
    root = golden.tmp_path
    backbone, size, names = backbone_and_names(golden)
    given = case.get("images", case.get("features", {}))
    labels = given.get("support_labels") or golden.figures["labels"]
    file = write_eurosat(root, names)
    rows = of_json(file)
    labels = [*labels, *{*range(len(names))} - {*labels}]  # a split has images of each class
    rows["train"] = [[f"{label}/train_0.png", label, names[label]] for label in labels]
    to_json(file, rows)
    pairs = [word for pair in options_of(golden, size, names).items() for word in pair]
    torch.manual_seed(1)
    trainer = build_trainer(make_cfg(case["trainer"], root, backbone, root / "out", *pairs))
    if case["input"] == "images":
        golden.same("templates", [*trainer.method.templates], case)
    inputs = Inputs(golden.figures, trainer)
    trainer.model.clip.logit_scale.data.fill_(case.get("logit_scale", 4.6052))
    if inputs.sentences is not None:
        trainer.method.sentence_features = inputs.sentences
    elif inputs.texts is not None:
        trainer.method.set_texts(inputs.texts)
    trainer.method.val = inputs.val, torch.tensor(inputs.val_labels).to(trainer.device)
    labels = torch.tensor(inputs.support_labels).to(trainer.device)
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


def learned_of(golden, trainer):
    """Parameter by its name in the file."""
    trainable = golden.figures.get("trainable", {})
    found = {}
    for name, parameter in trainer.model.named_parameters():
        if golden.case["trainer"] == "ProLIP":  # the figures have the name in the CLIP
            name = golden.case.get("projection", "visual.proj")
        short = name.removeprefix(f"{trainer.model.prompt_learner.name}.")
        found[name if name in trainable else short] = parameter
    assert shapes_of(found) == trainable
    return found
