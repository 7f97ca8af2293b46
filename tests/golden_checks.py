"""What the steps, searches and logits of a method on features must be, by the form of its golden
file.
"""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from golden_inputs import drawn
from test_golden import (
    AFTER,
    BEFORE,
    LOSSES,
    changes_of,
    close,
    for_classes,
    gradients_of,
    norms_of,
    shapes_of,
)

from clip import ImageOutput
from trainers.base.features import CachedOutput


def learned_of(trainer, figures):
    """Parameter by its name in the file."""
    found = {}
    for name, parameter in trainer.model.named_parameters():
        if figures["case"]["trainer"] == "ProLIP":  # the figures have the name in the CLIP
            name = figures["case"].get("projection", "visual.proj")
        short = name.removeprefix(f"{trainer.model.prompt_learner.name}.")
        found[name if name in figures.get("trainable", {}) else short] = parameter
    assert shapes_of(found) == figures.get("trainable", {})
    return found


def near(got, expected, relative=1e-5):
    """To a part of the largest value."""
    close(got, expected, relative * np.abs(expected).max())


@torch.no_grad()
def logits_of(trainer, features):
    return trainer.model(ImageOutput(features))


def check_logits(trainer, inputs, expected, tolerance=AFTER):
    """Of the test images."""
    close(logits_of(trainer, inputs.test), expected, tolerance)


def batch_of(features, labels):
    return {"img": CachedOutput(features), "label": torch.as_tensor(labels)}


def check_training(trainer, inputs, figures, learned):
    """The start, and steps of one batch."""
    check_logits(trainer, inputs, figures["logits_before"], BEFORE)
    batch = batch_of(inputs.train, figures["labels"])
    steps = []
    for step in range(len(figures["losses"])):
        steps.append(trainer.forward_backward(batch))
        if step == 0:
            assert gradients_of(learned) == pytest.approx(figures["grad_norms"], rel=1e-3, abs=1e-4)
    close([float(logged["loss"]) for logged in steps], figures["losses"], LOSSES)
    for logged, expected in zip(steps, figures.get("loss_parts", steps), strict=True):
        if expected is not logged:
            close(
                [float(logged[f"loss_{part}"]) for part in expected],
                list(expected.values()),
                LOSSES,
            )
    assert norms_of(learned) == pytest.approx(figures["param_norms_after"], rel=1e-4)
    check_logits(trainer, inputs, figures["logits_after"])


def check_accuracy(trainer, inputs, expected):
    """On the validation images."""
    right = logits_of(trainer, inputs.val).argmax(dim=1).cpu() == torch.tensor(inputs.val_labels)
    assert 100 * right.float().mean().item() == pytest.approx(expected, abs=1e-4)


def check_search(trainer, inputs, expected):
    trainer.method.finish()
    head = trainer.model.prompt_learner
    assert [head.beta.item(), head.alpha.item()] == pytest.approx(
        [expected["beta"], expected["alpha"]], rel=1e-5
    )
    if "val_accuracy" in expected:
        check_accuracy(trainer, inputs, expected["val_accuracy"])


def check_cache(trainer, inputs, figures):
    head = trainer.model.prompt_learner
    close(head.weight[:, :8], figures["keys_first8"], 1e-5)
    assert head.values.argmax(dim=1).tolist() == figures["values_rows"]
    assert head.values.sum(dim=1).tolist() == [1] * len(head.values)


def check_tip_adapter(trainer, inputs, figures, learned):
    check_cache(trainer, inputs, figures)
    zero_shot = (
        100 * torch.nn.functional.normalize(inputs.test, dim=1) @ trainer.model.class_texts.T
    )
    close(zero_shot, figures["logits_zeroshot"], BEFORE)
    check_logits(trainer, inputs, figures["logits_before"], BEFORE)
    check_accuracy(trainer, inputs, figures["val_accuracy"]["init"])
    check_search(trainer, inputs, figures["search"])
    check_logits(trainer, inputs, figures["logits_after"])


def check_tip_adapter_f(trainer, inputs, figures, learned):
    """Batches in a given order; the learning rate changes with each."""
    check_cache(trainer, inputs, figures)
    check_logits(trainer, inputs, figures["logits_before"], BEFORE)
    close(logits_of(trainer, inputs.train)[:4], figures["train_logits_first4"], BEFORE)
    sizes = figures["train_batches"]
    loader = trainer.method.feature_batches
    assert len(loader) == len(sizes)
    assert sorted(len(batch["label"]) for batch in loader) == sorted(sizes)
    batches = list(
        zip(inputs.train.split(sizes), torch.tensor(figures["labels"]).split(sizes), strict=True)
    )
    losses = []
    rates = []
    for step in range(figures["optimizer"]["total_steps"]):
        rates.append(trainer.get_current_lr())
        losses.append(
            float(trainer.forward_backward(batch_of(*batches[step % len(batches)]))["loss"])
        )
        if step == 0:
            assert gradients_of(learned) == pytest.approx(figures["grad_norms"], rel=1e-3)
        if step + 1 == len(figures["losses"]):
            check_logits(trainer, inputs, figures["logits_after"])
            assert norms_of(learned) == pytest.approx(figures["param_norms_after"], rel=1e-4)
    assert rates == pytest.approx(figures["lrs"], rel=1e-4, abs=1e-9)
    close(losses, figures["end"]["losses"], LOSSES)
    assert learned["adapter.weight"].norm().item() == pytest.approx(
        figures["end"]["weight_norm"], rel=1e-4
    )
    check_logits(trainer, inputs, figures["end"]["logits"])
    check_search(trainer, inputs, figures["end"]["search"])
    check_logits(trainer, inputs, figures["end"]["logits_searched"])


def check_clap(trainer, inputs, figures, learned):
    close(trainer.method.multipliers, figures["multipliers"], 1e-5)
    start = learned["adapter.prototypes"].data.clone()
    given = trainer.method.settings
    for variant, expected in figures.get("multipliers_other", {}).items():
        trainer.method.settings = replace(given, CONSTRAINT=f"l2_{variant}")
        trainer.method.start(trainer.method.support)
        assert trainer.method.multipliers.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    trainer.method.settings = given
    trainer.method.start(trainer.method.support)
    learned["adapter.prototypes"].data = start
    check_training(trainer, inputs, figures, learned)
    trainer.method.settings = replace(given, CONSTRAINT="l2_adaptative")
    trainer.check_finite = trainer._save_epoch = lambda: None
    for expected in figures.get("outer_steps", []):
        trainer.after_epoch()
        assert trainer.method.multipliers.tolist() == pytest.approx(expected, rel=1e-3)


def check_lp_plus_plus(trainer, inputs, figures, learned):
    """The steps, and then the whole fit."""
    head = trainer.model.prompt_learner
    assert [trainer.method.lr_w, trainer.method.lr_alpha] == pytest.approx(
        [figures["lr_w"], figures["lr_alpha"]], rel=1e-5
    )
    near(head.alpha_vec, [[figures["alpha_start"]] * head.alpha_vec.shape[1]])
    assert head.classifier.weight.norm().item() == pytest.approx(
        figures["weight_start"]["norm"], rel=1e-5
    )
    close(head.classifier.weight[:, :8], figures["weight_start"]["first8"], 1e-5)
    check_logits(trainer, inputs, figures["logits_before"], BEFORE)
    start = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    losses = []
    ends = figures["steps"]
    few = len(figures["losses"])
    images = trainer.method.support.rows
    labels = trainer.method.support.row_labels
    for number in range(1, max(map(int, ends)) + 1):
        losses.append(trainer.method.step(number, images, labels))
        if number == 1:
            assert gradients_of(learned) == pytest.approx(figures["grad_norms"], rel=1e-3, abs=1e-6)
        if number == few:
            assert norms_of(learned) == pytest.approx(figures["param_norms_after"], rel=1e-4)
            check_logits(trainer, inputs, figures["logits_after"])
        if expected := ends.get(str(number)):
            assert losses[-1] == pytest.approx(expected["loss"], abs=LOSSES)
            assert norms_of(learned) == pytest.approx(expected["norms"], rel=1e-4)
            near(head.alpha_vec[0], expected["alpha_vec"])
            close(head.classifier.bias, expected["bias"], AFTER)
            check_logits(trainer, inputs, expected["logits"])
    close(losses[:few], figures["losses"], LOSSES)
    head.load_state_dict(start)
    trainer.method.start(trainer.method.support)
    trainer.method.fit(trainer.method.support)
    assert trainer.method.chosen_step == figures["chosen_step"]
    check_accuracy(trainer, inputs, figures["chosen_val_accuracy"])


def check_gaussians(head, figures):
    assert head.W.norm(dim=0).tolist() == pytest.approx(figures["W_norms"], rel=1e-4)
    near(
        head.W.T[:, :8],
        figures["W_first8"],
        1e-5 * max(figures["W_norms"]) / np.abs(figures["W_first8"]).max(),
    )
    near(head.b, figures["b"])


def check_gda(trainer, inputs, figures, learned):
    """Logits are small differences of numbers that all classes share: they compare with the
    largest.
    """
    head = trainer.model.prompt_learner
    check_gaussians(head, figures)
    near(logits_of(trainer, inputs.test), figures["logits_before"])
    trainer.method.fit(trainer.method.support)
    assert head.alpha.item() == pytest.approx(figures["search"]["alpha"])
    near(logits_of(trainer, inputs.test), figures["logits_after"])
    if "new" in figures:
        f = inputs.features
        texts = torch.nn.functional.normalize(
            inputs.of_texts(15, f["new_classes"], means=14), dim=1
        )
        trainer.model.class_texts = texts
        trainer.method.estimate(texts)
        check_gaussians(head, figures["new"])
        images = inputs.images(16, f["test_labels_new"], means=14, classes=f["new_classes"])[0]
        near(logits_of(trainer, images), figures["new"]["logits"])


def check_ss_text(trainer, inputs, figures, learned):
    """All rules; without images of any class it is zero-shot CLIP."""
    head = trainer.model.prompt_learner
    for rule, expected in figures["variants"].items():
        trainer.method.settings = replace(trainer.method.settings, RULE=rule)
        trainer.method.start(trainer.method.support)
        assert head.weight.norm(dim=1).tolist() == pytest.approx(expected["w_norms"], rel=1e-5)
        near(head.weight[:, :8], expected["w_first8"], 2e-5)
        near(logits_of(trainer, inputs.test), expected["logits"])
    head.weight.data = trainer.model.class_texts
    check_logits(trainer, inputs, figures["logits_before"], BEFORE)


def check_proker(trainer, inputs, figures, learned):
    """The logits are cosines; the search tries all cells of its grids."""
    head = trainer.model.prompt_learner
    search = figures["search"]
    text = trainer.model.class_texts
    close(
        torch.nn.functional.normalize(inputs.test, dim=1) @ text.T, figures["logits_zeroshot"], 1e-5
    )
    check_logits(trainer, inputs, figures["logits_before"], 1e-5)
    trainer.method.settings = replace(trainer.method.settings, BETA=0, LAMBDA=0)
    assert trainer.method.trials == np.size(search["accuracies"])
    trainer.method.finish()
    assert [head.beta.item(), head.lambda_.item()] == pytest.approx(
        [search["beta"], search["lambda"]], rel=1e-6
    )
    check_accuracy(trainer, inputs, np.max(search["accuracies"]))
    check_logits(trainer, inputs, figures["logits_after"], 1e-5)


def check_projection(trainer, inputs, figures, learned):
    """All steps, in the order of the views; then the model for new classes, and the CLIP with the
    projection in it.
    """
    check_logits(trainer, inputs, figures["logits_before"], BEFORE)
    start = {name: value.detach().clone() for name, value in learned.items()}
    rates = []
    logged = []
    step = trainer.method.training_step

    def recorded(batch):
        rates.append(trainer.get_current_lr())
        view = inputs.support[figures["views_used"][len(logged)]]
        assert torch.equal(batch["img"].feature, view)
        logged.append({name: float(value) for name, value in step(batch).items()})
        if len(logged) == 1:
            assert gradients_of(learned) == pytest.approx(figures["grad_norms"], rel=1e-3)
        return logged[-1]

    trainer.method.training_step = recorded
    trainer.method.fit(trainer.method.support)
    assert rates == pytest.approx(figures["lrs"], rel=1e-9)
    close([values["loss"] for values in logged], figures["losses"], LOSSES)
    for values, parts in zip(logged, figures["loss_parts"], strict=True):
        close([values[f"loss_{part}"] for part in parts], list(parts.values()), LOSSES)
    expected = pytest.approx(figures["param_change_norms"], rel=2e-3)
    assert changes_of(learned, start) == expected
    exact = {name: value.detach().double() for name, value in learned.items()}
    assert norms_of(exact) == pytest.approx(figures["param_norms_after"], rel=2e-5)
    for name, first in figures["first8_after"].items():
        close(learned[name].flatten()[:8], first, 1e-5)
    check_logits(trainer, inputs, figures["logits_after"])
    plain = deepcopy(trainer.model.frozen)
    plain.load_state_dict(trainer.model.folded())
    size = trainer.cfg.INPUT.SIZE[0]
    images = drawn(7, 3, 3, size, size)
    with torch.no_grad():
        expected = trainer.method.head.project(trainer.model.image_output(images).feature)
        torch.testing.assert_close(plain.encode_image(images), expected, rtol=1e-5, atol=1e-5)
    if "new_classnames" in figures["case"]:
        other = for_classes(trainer, figures["case"]["new_classnames"])
        close(logits_of(other, inputs.test), figures["logits_new_after"], AFTER)


def check_timo(trainer, inputs, figures, learned):
    """What is chosen, with the accuracy of every cell, and the logits."""
    method = trainer.method
    search = figures["search"]
    close(method.prototypes[:, :8], figures["prototypes_first8"], 1e-5)
    close(method.scores, figures["matching_score"], 1e-5)
    means = torch.nn.functional.normalize(method.sentence_features.mean(dim=1), dim=1)
    zero_shot = 100 * torch.nn.functional.normalize(inputs.test, dim=1) @ means.T
    close(zero_shot, figures["logits_zeroshot"], BEFORE)
    counts = {}
    counted = method.counts_of

    def noted(beta):
        counts[beta] = counted(beta)
        return counts[beta]

    method.counts_of = noted
    method.fit(method.support)
    assert [*counts] == list(dict.fromkeys(search["betas"]))
    cells = [100 * np.array([*counts[beta].values()]) / len(inputs.val) for beta in search["betas"]]
    assert cells == [pytest.approx(row, abs=1e-4) for row in search["val_accuracies"]]
    head = method.head
    assert head.alpha.item() == pytest.approx(search["alpha"])
    check_accuracy(trainer, inputs, search["val_accuracy"])
    close(head.guided[:, :8], figures["text_first8"], 1e-5)
    check_gaussians(head, figures)
    near(logits_of(trainer, inputs.test), figures["logits_after"])


FORMS = {"TipAdapter": check_tip_adapter, "TipAdapterF": check_tip_adapter_f, "CLAP": check_clap}
FORMS |= dict.fromkeys(("CLIPAdapter", "TaskRes", "ZSLP"), check_training)
FORMS |= {"LPPlusPlus": check_lp_plus_plus, "GDA": check_gda}
FORMS |= {"SSText": check_ss_text, "ProKeR": check_proker, "TIMO": check_timo}
FORMS |= dict.fromkeys(("ProLIP", "RLA"), check_projection)
