"""Methods on features: texts, start, steps, searches, logits."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch
from dassl.engine import build_trainer
from drawn import make_cfg, write_eurosat
from harness import (
    BEFORE,
    Golden,
    agree,
    copied,
    drawn,
    for_classes,
    gradients_of,
    image_features,
    norms_of,
    shapes_of,
    text_features,
)
from marks import of_json, to_json
from torch.nn.functional import normalize

import trainers
from clip import ImageOutput
from clip.random_weights import random_clip, random_tensor
from trainers.base.feature_method import FittedMethod
from trainers.base.features import CachedOutput, Support

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


def check_features(golden: Golden):
    """The texts and the start; then what the method computes."""
    figures = golden.figures
    trainer, inputs = built(golden)
    learned = learned_of(golden, trainer)
    for name, how in figures.get("start", {}).items():
        if "recipe" in how:
            recipe = random_tensor(name, tuple(learned[name].shape)).to(trainer.device)
            learned[name].data = recipe + (learned[name].data if "published" in how else 0)
    text = trainer.model.class_texts if "projection" not in golden.case else inputs.texts
    spec = trainer.method.spec
    if spec.reads_text:
        # The file has them before they are made unit
        if "text_norms" in figures and spec.unit_text:
            text = text * torch.tensor(figures["text_norms"], device=text.device)[:, None]
        golden.same("text_first8", lambda: text[:, :8], abs=1e-4)
        golden.same("text_norms", lambda: text.norm(dim=1), rel=1e-4)
    state = trainer.method.saved_module().state_dict()
    golden.same("checkpoint_keys", lambda: shapes_of(state))
    FORMS[golden.case["trainer"]](golden, trainer, inputs, learned)


@torch.no_grad()
def logits_of(trainer, features):
    return trainer.model(ImageOutput(features))


def batch_of(features, labels):
    return {"img": CachedOutput(features), "label": torch.as_tensor(labels)}


def check_training(golden, trainer, inputs, learned):
    """The start, and steps of one batch."""
    golden.same("logits_before", logits_of(trainer, inputs.test))
    batch = batch_of(inputs.train, golden.figures["labels"])
    golden.steps(trainer, [batch] * len(golden.figures["losses"]), learned)
    golden.same("logits_after", logits_of(trainer, inputs.test))


def check_accuracy(trainer, inputs, expected):
    """On the validation images."""
    right = logits_of(trainer, inputs.val).argmax(dim=1).cpu() == torch.tensor(inputs.val_labels)
    agree(100 * right.float().mean(), expected, abs=1e-4)


def check_search(golden, trainer, inputs, expected):
    trainer.method.finish()
    head = trainer.model.prompt_learner
    golden.same("beta", head.beta, expected, rel=1e-5)
    golden.same("alpha", head.alpha, expected, rel=1e-5)
    if "val_accuracy" in expected:
        check_accuracy(trainer, inputs, expected["val_accuracy"])


def check_cache(golden, trainer):
    head = trainer.model.prompt_learner
    golden.same("keys_first8", head.weight[:, :8])
    golden.same("values_rows", head.values.argmax(dim=1))
    assert head.values.sum(dim=1).tolist() == [1] * len(head.values)


def zero_shot_of(trainer, inputs, texts=None, scale=100):
    texts = trainer.model.class_texts if texts is None else texts
    return scale * normalize(inputs.test, dim=1) @ texts.T


def check_tip_adapter(golden, trainer, inputs, learned):
    check_cache(golden, trainer)
    golden.same("logits_zeroshot", zero_shot_of(trainer, inputs))
    golden.same("logits_before", logits_of(trainer, inputs.test))
    check_accuracy(trainer, inputs, golden.figures["val_accuracy"]["init"])
    check_search(golden, trainer, inputs, golden.figures["search"])
    golden.same("logits_after", logits_of(trainer, inputs.test))


def check_tip_adapter_f(golden, trainer, inputs, learned):
    """Batches in a given order; the learning rate changes with each."""
    figures = golden.figures
    end = figures["end"]
    check_cache(golden, trainer)
    golden.same("logits_before", logits_of(trainer, inputs.test))
    golden.same("train_logits_first4", logits_of(trainer, inputs.train)[:4], abs=BEFORE)
    sizes = figures["train_batches"]
    loader = trainer.method.feature_batches
    assert sorted(len(batch["label"]) for batch in loader) == sorted(sizes)
    labels = torch.tensor(figures["labels"])
    batches = [*zip(inputs.train.split(sizes), labels.split(sizes), strict=True)]
    losses = []
    rates = []
    for step in range(figures["optimizer"]["total_steps"]):
        rates.append(trainer.get_current_lr())
        logged = trainer.forward_backward(batch_of(*batches[step % len(batches)]))
        losses.append(float(logged["loss"]))
        if step == 0:
            golden.same("grad_norms", gradients_of(learned))
        if step + 1 == len(figures["losses"]):
            golden.same("logits_after", logits_of(trainer, inputs.test))
            golden.same("param_norms_after", norms_of(learned))
    golden.same("lrs", rates)
    golden.same("losses", losses, end)
    golden.same("weight_norm", learned["adapter.weight"].norm(), end)
    golden.same("logits", logits_of(trainer, inputs.test), end)
    check_search(golden, trainer, inputs, end["search"])
    golden.same("logits_searched", logits_of(trainer, inputs.test), end)


def check_clap(golden, trainer, inputs, learned):
    method = trainer.method
    golden.same("multipliers", method.multipliers, abs=1e-5)
    start = learned["adapter.prototypes"].data.clone()
    given = method.settings
    for variant, expected in golden.figures.get("multipliers_other", {}).items():
        method.settings = replace(given, CONSTRAINT=f"l2_{variant}")
        method.start(method.support)
        agree(method.multipliers, expected, rel=1e-4, abs=1e-6)
    method.settings = given
    method.start(method.support)
    learned["adapter.prototypes"].data = start
    check_training(golden, trainer, inputs, learned)
    method.settings = replace(given, CONSTRAINT="l2_adaptative")
    trainer.check_finite = trainer._save_epoch = lambda: None
    for expected in golden.figures.get("outer_steps", []):
        trainer.after_epoch()
        agree(method.multipliers, expected, rel=1e-3)


def check_lp_plus_plus(golden, trainer, inputs, learned):
    """The steps, and then the whole fit."""
    figures = golden.figures
    method = trainer.method
    head = trainer.model.prompt_learner
    golden.same("lr_w", method.lr_w)
    golden.same("lr_alpha", method.lr_alpha)
    agree(head.alpha_vec, [[figures["alpha_start"]] * head.alpha_vec.shape[1]], largest=1e-5)
    golden.same("norm", head.classifier.weight.norm(), figures["weight_start"])
    golden.same("first8", head.classifier.weight[:, :8], figures["weight_start"])
    golden.same("logits_before", logits_of(trainer, inputs.test))
    start = copied(head.state_dict())
    losses = []
    ends = figures["steps"]
    few = len(figures["losses"])
    for number in range(1, max(map(int, ends)) + 1):
        losses.append(method.step(number, method.support.rows, method.support.row_labels))
        if number == 1:
            golden.same("grad_norms", gradients_of(learned))
        if number == few:
            golden.same("param_norms_after", norms_of(learned))
            golden.same("logits_after", logits_of(trainer, inputs.test))
        if expected := ends.get(str(number)):
            golden.same("loss", losses[-1], expected)
            golden.same("norms", norms_of(learned), expected)
            golden.same("alpha_vec", head.alpha_vec[0], expected)
            golden.same("bias", head.classifier.bias, expected)
            golden.same("logits", logits_of(trainer, inputs.test), expected)
    golden.same("losses", losses[:few])
    head.load_state_dict(start)
    method.start(method.support)
    method.fit(method.support)
    golden.same("chosen_step", method.chosen_step)
    check_accuracy(trainer, inputs, figures["chosen_val_accuracy"])


def check_gaussians(golden, head, figures):
    golden.same("W_norms", head.W.norm(dim=0), figures)
    near = 1e-5 * max(figures["W_norms"])
    golden.same("W_first8", head.W.T[:, :8], figures, abs=near)
    golden.same("b", head.b, figures)


def check_gda(golden, trainer, inputs, learned):
    """Logits are small differences of numbers that all classes share: they compare with the
    largest.
    """
    method = trainer.method
    head = trainer.model.prompt_learner
    figures = golden.figures
    check_gaussians(golden, head, figures)
    golden.same("logits_before", logits_of(trainer, inputs.test))
    method.fit(method.support)
    golden.same("alpha", head.alpha, figures["search"])
    golden.same("logits_after", logits_of(trainer, inputs.test))
    if "new" in figures:
        f = golden.case["features"]
        count = f["new_classes"]
        texts = normalize(text_features(f, 15, count, means=14), dim=1).to(trainer.device)
        trainer.model.class_texts = texts
        method.estimate(texts)
        check_gaussians(golden, head, figures["new"])
        images = image_features(f, 16, f["test_labels_new"], means=14, classes=count)[0]
        golden.same("logits", logits_of(trainer, images.to(trainer.device)), figures["new"])


def check_ss_text(golden, trainer, inputs, learned):
    """All rules; without images of any class it is zero-shot CLIP."""
    method = trainer.method
    head = trainer.model.prompt_learner
    for rule, expected in golden.figures["variants"].items():
        method.settings = replace(method.settings, RULE=rule)
        method.start(method.support)
        golden.same("w_norms", head.weight.norm(dim=1), expected, rel=1e-5)
        golden.same("w_first8", head.weight[:, :8], expected, largest=2e-5)
        golden.same("logits", logits_of(trainer, inputs.test), expected, largest=1e-5)
    head.weight.data = trainer.model.class_texts
    golden.same("logits_before", logits_of(trainer, inputs.test))


def check_proker(golden, trainer, inputs, learned):
    """The logits are cosines; the search tries all cells of its grids."""
    method = trainer.method
    head = trainer.model.prompt_learner
    search = golden.figures["search"]
    golden.same("logits_zeroshot", zero_shot_of(trainer, inputs, scale=1))
    golden.same("logits_before", logits_of(trainer, inputs.test))
    method.settings = replace(method.settings, BETA=0, LAMBDA=0)
    assert method.trials == np.size(search["accuracies"])
    method.finish()
    golden.same("beta", head.beta, search, rel=1e-6)
    golden.same("lambda", head.lambda_, search, rel=1e-6)
    check_accuracy(trainer, inputs, np.max(search["accuracies"]))
    golden.same("logits_after", logits_of(trainer, inputs.test))


def check_projection(golden, trainer, inputs, learned):
    """All steps, in the order of the views; then the model for new classes, and the CLIP with the
    projection in it.
    """
    figures = golden.figures
    method = trainer.method
    golden.same("logits_before", logits_of(trainer, inputs.test))
    start = copied(learned)
    rates = []
    logged = []
    step = method.training_step

    def recorded(batch):
        rates.append(trainer.get_current_lr())
        view = inputs.support[figures["views_used"][len(logged)]]
        assert torch.equal(batch["img"].feature, view)
        logged.append({name: float(value) for name, value in step(batch).items()})
        if len(logged) == 1:
            golden.same("grad_norms", gradients_of(learned))
        return logged[-1]

    method.training_step = recorded
    method.fit(method.support)
    golden.same("lrs", rates)
    golden.same("losses", [values["loss"] for values in logged])
    golden.same("loss_parts", golden.parts_of(logged))
    golden.end({name: value.detach().double() for name, value in learned.items()}, start)
    first = {name: learned[name].flatten()[:8] for name in figures["first8_after"]}
    golden.same("first8_after", first)
    golden.same("logits_after", logits_of(trainer, inputs.test))
    plain = deepcopy(trainer.model.frozen)
    plain.load_state_dict(trainer.model.folded())
    size = trainer.cfg.INPUT.SIZE[0]
    images = drawn(7, 3, 3, size, size)
    with torch.no_grad():
        expected = method.head.project(trainer.model.image_output(images).feature)
        torch.testing.assert_close(plain.encode_image(images), expected, rtol=1e-5, atol=1e-5)
    if "new_classnames" in golden.case:
        other = for_classes(trainer, golden.case["new_classnames"])
        golden.same("logits_new_after", logits_of(other, inputs.test))


def check_timo(golden, trainer, inputs, learned):
    """What is chosen, with the accuracy of every cell, and the logits."""
    method = trainer.method
    search = golden.figures["search"]
    golden.same("prototypes_first8", method.prototypes[:, :8])
    golden.same("matching_score", method.scores)
    means = normalize(method.sentence_features.mean(dim=1), dim=1)
    golden.same("logits_zeroshot", zero_shot_of(trainer, inputs, means))
    counts = {}
    counted = method.counts_of

    def noted(beta):
        counts[beta] = counted(beta)
        return counts[beta]

    method.counts_of = noted
    method.fit(method.support)
    assert [*counts] == list(dict.fromkeys(search["betas"]))
    cells = [100 * np.array([*counts[beta].values()]) / len(inputs.val) for beta in search["betas"]]
    golden.same("val_accuracies", [row.tolist() for row in cells], search, abs=1e-4)
    golden.same("alpha", method.head.alpha, search)
    check_accuracy(trainer, inputs, search["val_accuracy"])
    golden.same("text_first8", method.head.guided[:, :8])
    check_gaussians(golden, method.head, golden.figures)
    golden.same("logits_after", logits_of(trainer, inputs.test))


FORMS = {
    "TipAdapter": check_tip_adapter,
    "TipAdapterF": check_tip_adapter_f,
    "CLAP": check_clap,
    "CLIPAdapter": check_training,
    "TaskRes": check_training,
    "ZSLP": check_training,
    "LPPlusPlus": check_lp_plus_plus,
    "GDA": check_gda,
    "SSText": check_ss_text,
    "ProKeR": check_proker,
    "TIMO": check_timo,
    "ProLIP": check_projection,
    "RLA": check_projection,
}
