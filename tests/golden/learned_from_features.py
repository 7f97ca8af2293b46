"""Methods on features: texts, start, steps, searches, logits."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch
from feature_cases import built, learned_of
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
from torch.nn.functional import normalize

from clip import ImageOutput
from clip.random_weights import random_tensor
from trainers.base.features import CachedOutput


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
    """The choice, with the accuracy of every cell, and the logits."""
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
