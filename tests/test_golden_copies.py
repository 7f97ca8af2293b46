"""Methods that learn copies of CLIP's weights compute what their published code computes, over
whole short runs.

`--golden DIR` runs other figures of the same form. Tolerances are those the figures were published
with.
"""

import pytest
import torch
from dassl.data.datasets import DATASET_REGISTRY
from marks import case_of, golden
from test_golden import (
    AFTER,
    BEFORE,
    COPIES,
    LOSSES,
    build,
    changes_of,
    close,
    for_classes,
    gradients_of,
    images_of,
    norms_of,
    shapes_of,
    towers,  # noqa: F401 - a fixture
)

from clip import folded_weights, load_backbone
from clip.random_weights import random_tensor

GRADIENTS = {"rel": 1e-3, "abs": 1e-5}
CHANGES = {"rel": 2e-3, "abs": 1e-6}
NORMS = {"rel": 2e-5}


def pytest_generate_tests(metafunc):
    golden(metafunc, "figures", lambda figures: case_of(figures).get("trainer") in COPIES, ())


def settings_of(figures):
    """The method's settings, those of the optimiser, and the images of each class, by the names in
    the file.
    """
    cfg = dict(figures["case"]["cfg"])
    shots = cfg.pop("SHOTS", 1)
    epochs = cfg.pop("EPOCHS", 0)
    optimizer = {key: value for key, value in figures["optimizer"].items() if key != "momentum"}
    if "ENCODERS" in cfg:
        cfg["ENCODER"] = {2: "both"}.get(len(cfg["ENCODERS"]), cfg.pop("ENCODERS")[0])
        cfg.pop("ENCODERS", None)
    if epochs:
        cfg["N_ITERS"] = 0
    return cfg, optimizer | {"max_epoch": epochs or 1}, shots


@pytest.fixture
def built(figures, towers, backbones, stand_in, tmp_path, monkeypatch):  # noqa: F811
    case = figures["case"]
    dataset = case.get("dataset", "EuroSAT")
    stand_in(dataset)
    if case["trainer"] == "CLIPSVD":
        monkeypatch.setattr(DATASET_REGISTRY.get(dataset), "template", case["template"])
    settings, optimizer, shots = settings_of(figures)
    arguments = (
        case["trainer"],
        towers,
        settings,
        case["arch"],
        case["classnames"],
        optimizer,
        backbones,
        tmp_path,
    )
    trainer = build(*arguments, dataset, by_recipe=False, train=shots)
    trainer.method.schedule_steps = "lrs" in figures
    return trainer


def learned_in(trainer, figures):
    """The learned tensors by the names in the file, those of the CLIP."""
    names = {saved: name for name, saved in (figures.get("checkpoint_names") or {}).items()}
    return {
        names.get(name, name): value
        for name, value in trainer.model.prompt_learner.named_parameters()
    }


def check_logits(trainer, figures, images, when, tolerance):
    new = figures["case"]["new_classnames"]
    models = {"logits": (trainer, trainer.method.class_names), "logits_new": (trainer, new)}
    models |= {"logits_union": (trainer, trainer.method.class_names + new)}
    for name, (method, names) in models.items():
        if expected := figures.get(f"{name}_{when}"):
            method = method if name == "logits" else for_classes(method, names)
            method.model.eval()
            close(method.model_inference(images), expected, tolerance)
    trainer.set_model_mode("train")


def train(trainer, batch, learned, figures, suffix=""):
    """Steps of one batch under the published schedule, if the file has it, else at one rate."""
    start = {name: value.detach().clone() for name, value in learned.items()}
    if suffix:  # the classifier starts from the tuned text features
        start = dict.fromkeys(start, trainer.model.text_features(torch.empty(0)).detach())
    logged = []
    rates = []
    for step in range(len(figures[f"losses{suffix}"])):
        rates.append(trainer.get_current_lr())
        logged.append(
            {name: float(value) for name, value in trainer.forward_backward(batch).items()}
        )
        if step == 0:
            expected = pytest.approx(figures[f"grad_norms{suffix}"], **GRADIENTS)
            assert gradients_of(learned) == expected
            others = set(trainer.model.parameters()) - set(learned.values())
            # So that the optimiser leaves them out
            assert all(value.grad is None for value in others)
    close([values["loss"] for values in logged], figures[f"losses{suffix}"], LOSSES)
    for values, expected in zip(logged, figures.get("loss_parts", []), strict=False):
        close([values[f"loss_{part}"] for part in expected], list(expected.values()), LOSSES)
    if f"lrs{suffix}" in figures:
        assert rates == pytest.approx(figures[f"lrs{suffix}"], rel=1e-9)
    expected = pytest.approx(figures[f"param_change_norms{suffix}"], **CHANGES)
    assert changes_of(learned, start) == expected
    return norms_of(learned)


def test_method(built, figures):
    trainer = built
    case = figures["case"]
    learned = learned_in(trainer, figures)
    head = {}
    if "trainable_head" in figures:
        head = {"classifier": learned.pop("classifier")}
        assert shapes_of(head) == figures["trainable_head"]
    assert shapes_of(learned) == figures["trainable"]
    for name, value in (
        learned.items() if str(figures.get("start")).startswith("published +") else ()
    ):
        value.data += 4 * random_tensor(f"{name}.delta", tuple(value.shape)).to(value)
    for name, first in figures.get("start_first4", {}).items():
        close(learned[name][0, :4], first, 1e-4)
        close(learned[name][0, -4:], figures["start_last4"][name], 1e-4)
    images = images_of(case["batch"], case["arch"]["image_resolution"]).to(trainer.device)
    batch = {"img": images, "label": torch.tensor(figures["labels"]).to(trainer.device)}
    check_logits(trainer, figures, images, "before", BEFORE)
    norms = train(trainer, batch, learned, figures)
    if head:
        assert norms == pytest.approx(figures["param_norms_stage1"], **NORMS)
        close(trainer.model_inference(images), figures["logits_stage1"], AFTER)
        norms = train(trainer, batch, head, figures, "_head")
    assert norms == pytest.approx(figures["param_norms_after"], **NORMS)
    check_logits(trainer, figures, images, "after", AFTER)
    folded = load_backbone(trainer.cfg.MODEL.BACKBONE.NAME)
    folded.load_state_dict(folded_weights(trainer.model.clip))
    with torch.no_grad():
        close(folded.encode_image(images), trainer.model.image_output(images).feature, 1e-5)


@pytest.mark.slow
def test_the_classifier_of_two_stages_starts_and_learns_without_dropout(backbones, tmp_path):
    arch = {"image_resolution": 32, "patch_size": 16, "vision_layers": 1, "text_layers": 1}
    settings = {"PEFT": "lora", "N_ITERS": 3, "FRACTION": 0.4}
    optimizer = {"name": "adamw", "lr": 0.01, "max_epoch": 1}
    names = ["red", "green field", "blue lake"]
    trainer = build(
        "TwoStage", "fast", settings, arch, names, optimizer, backbones, tmp_path, train=1
    )
    trainer.method.schedule_steps = True
    trainer.model.prompt_learner.classifier.data.zero_()
    images = images_of(3, 32).to(trainer.device)
    labels = torch.arange(3, device=trainer.device)
    trainer.set_model_mode("train")
    trainer.forward_backward({"img": images, "label": labels})
    trainer.set_model_mode("eval")
    expected = torch.nn.functional.cross_entropy(trainer.model_inference(images), labels)
    trainer.set_model_mode("train")
    assert float(
        trainer.forward_backward({"img": images, "label": labels})["loss"]
    ) == pytest.approx(float(expected), abs=LOSSES)
