"""Every test-time method computes what its published implementation computes, image by image from
given views.
"""

import numpy as np
import pytest
import torch
from marks import case_of, golden, thorough_but
from test_golden import AFTER, BEFORE, LOSSES, build, close

from clip.random_weights import random_tensor
from trainers.base.test_time import entropies, most_confident
from trainers.mta import bandwidths, mean_shift
from trainers.zero import votes


def pytest_generate_tests(metafunc):
    def chosen(figures):
        needed = "losses" in figures or metafunc.function is not test_steps_of_tuning
        case = case_of(figures)
        of_images = case.get("kind") in ("test-time", "stream") and "input" not in case
        return of_images and needed

    golden(metafunc, "figures", chosen, ("mta",))
    golden(metafunc, "counted", lambda figures: "zero_votes" in figures)


def settings_of(values: dict, prefix: str = "") -> dict:
    """Settings by the names here: those of a group (TDA's positive cache) with its name before
    them.
    """
    found = {}
    for key, value in values.items():
        name = f"{prefix}{key}".upper()
        found |= settings_of(value, f"{name}_") if isinstance(value, dict) else {name: value}
    return found


@pytest.fixture(params=thorough_but(("fast",), ("fast", "plain")))
def trainer(request, figures, backbones, stand_in, tmp_path):
    """The method of a case."""
    case = figures["case"]
    stand_in(case["dataset"])
    names = case["classnames"]
    arch = case["arch"]
    settings = settings_of(case["cfg"]) | (
        {"TEMPLATES": case["templates"]} if "templates" in case else {}
    )
    trainer = build(
        case["trainer"],
        request.param,
        settings,
        arch,
        names,
        {},
        backbones,
        tmp_path,
        case["dataset"],
    )
    for name, shape in figures["trainable"].items():
        if case["ctx"] == "drawn":
            trainer.model.get_buffer(name).copy_(random_tensor(name, tuple(shape)))
    trainer.set_model_mode("eval")
    return trainer


def views_of(case: dict, trainer) -> torch.Tensor:
    size = case["arch"]["image_resolution"]
    shape = (case["images"], case["views"], 3, size, size)
    return torch.from_numpy(np.random.default_rng(9).standard_normal(shape, dtype=np.float32)).to(
        trainer.device
    )


def test_method(trainer, figures):
    case = figures["case"]
    state = trainer.method.new_state()
    checks = CHECKS.get(figures["case"]["trainer"])
    features = [trainer.model.image_features(views) for views in views_of(case, trainer)]
    with torch.no_grad():
        logits = [trainer.method.logits(each) for each in features]
    if case["kind"] == "test-time":
        close(torch.stack([each[0] for each in logits]), figures["logits_before"], BEFORE)
    if "logits_views" in figures:
        close(torch.stack(logits), figures["logits_views"], BEFORE)
    if "kept" in figures:
        if "entropies" in figures:
            close(torch.stack([entropies(each) for each in logits]), figures["entropies"], BEFORE)
        assert [
            most_confident(each, case["cfg"]["SELECTION"]).tolist() for each in logits
        ] == figures["kept"]
    if case["kind"] == "stream":
        answers = torch.stack([trainer.method.answer(each, state) for each in features])
    else:
        answers = trainer.model_inference(views_of(case, trainer))
    close(answers, figures["logits_after"], AFTER)
    chosen = answers.argmax(dim=1).tolist()
    assert chosen == figures.get("predictions", chosen)
    if "labels" in figures:
        right = np.mean(np.array(chosen) == figures["labels"])
        assert right == pytest.approx(
            figures.get("correct", figures.get("accuracy", 100 * right) / 100), abs=1e-3
        )
    if checks:
        checks(trainer, figures, features, state)


def check_mta(trainer, figures, features, state):
    """Bandwidths, how much each view counts after the first step and at the end, the number of
    steps, the mode.
    """
    close(torch.stack([bandwidths(each).sqrt() for each in features]), figures["bandwidths"], 1e-4)
    lambdas = trainer.method.settings.LAMBDA_Y, trainer.method.settings.LAMBDA_Q
    found = [mean_shift(each, trainer.method.logits(each), *lambdas) for each in features]
    close(torch.stack([mode[:8] for mode, _ in found]), figures["mode_first8"], 1e-4)
    close(torch.stack([scores for _, scores in found]), figures["inlierness"], 1e-4)


def check_tda(trainer, figures, features, state):
    """The numbers computed from each image, and the images in the caches at the end, by their
    features.
    """
    images, logits, p = map(
        torch.stack, zip(*map(trainer.method.mean_of_views, features), strict=True)
    )
    close(logits, figures["logits_before"], BEFORE)
    assert logits.argmax(dim=1).tolist() == figures["pseudo_labels"]
    close(-(p * p.log()).sum(dim=1), figures["entropies"], BEFORE)
    for cache, expected in figures["cached"].items():
        entries = state[f"{cache.upper()}_ENTROPIES"].isfinite()
        found = {}
        for label, slot in entries.nonzero().tolist():
            entry = state[f"{cache.upper()}_FEATURES"][label, slot]
            found.setdefault(str(label), []).append(int((images - entry).norm(dim=1).argmin()))
        assert found == expected


def test_steps_of_tuning(trainer, figures, monkeypatch):
    """Losses, gradients and vectors of every step of every image."""
    name = "prompt_learner.ctx"
    objective = trainer.method.objective
    step = torch.optim.AdamW.step
    # Of each image, those of its steps
    losses = []
    gradients = []
    after = []
    start = trainer.model.get_buffer(name).clone()
    assert list(start.shape) == figures["trainable"][name]

    def noted(logits, text):
        loss = objective(logits, text)
        losses[-1].append(loss.item())
        return loss

    def stepped(optimizer):
        (ctx,) = optimizer.param_groups[0]["params"]
        gradients[-1].append(ctx.grad.clone())
        step(optimizer)
        after[-1].append(ctx.detach().clone())

    monkeypatch.setattr(trainer.method, "objective", noted)
    monkeypatch.setattr(torch.optim.AdamW, "step", stepped)
    for views in views_of(figures["case"], trainer):
        for record in (losses, gradients, after):
            record.append([])
        trainer.method.answer(trainer.model.image_features(views), {})
    assert torch.equal(trainer.model.get_buffer(name), start)
    gradients, after = (
        torch.stack(list(map(torch.stack, record))) for record in (gradients, after)
    )

    def norms(vectors):  # (images, steps, vectors, width)
        return vectors.flatten(2).norm(dim=2)

    close(torch.tensor(losses), figures["losses"], LOSSES)
    close(gradients[:, 0, :, :8], figures["grad_first8"], 1e-3)
    if isinstance(figures["grad_norms"], list):  # of all vectors together
        whole = gradients.flatten(2).norm(dim=2)
        assert whole.tolist() == [pytest.approx(image, rel=1e-3) for image in figures["grad_norms"]]
        moved = (after[:, -1] - start).flatten(1).norm(dim=1)
        close(moved, figures["ctx_moved_norms"], 1e-5)
        close(after[:, -1, :, :8], figures["ctx_after_first8"], 1e-5)
        parts = figures["loss_parts"]
        weight = figures["case"]["cfg"]["LAMBDA"]
        total = np.array(parts["entropy"]) + weight * np.array(parts["orthogonality"])
        close(torch.tensor(losses), total.tolist(), LOSSES)
        return
    assert norms(gradients).tolist() == [
        pytest.approx(image, rel=1e-3) for image in figures["grad_norms"][name]
    ]
    assert start.norm().item() == pytest.approx(figures["ctx_before_norm"], abs=1e-5)
    close(norms(after)[:, -1], figures["ctx_after_norms"], 1e-5)
    close(norms(after - start), figures["ctx_moved_norms"], 1e-5)
    close(after[:, -1, :, :8], figures["ctx_after_first8"], 1e-5)
    if "ctx_after_first_step_first8" in figures:
        close(after[:, 0, :, :8], figures["ctx_after_first_step_first8"], 1e-5)


CHECKS = {"MTA": check_mta, "TDA": check_tda}


def test_votes_of_zero(counted):
    for case in counted["zero_votes"]:
        cosines = torch.tensor(case["cosines"])
        uncertain = entropies(cosines / case["temperature"])
        assert uncertain.argsort().tolist() == case["order"]
        found = votes(cosines, uncertain, case["selection"])
        assert found.argmax().item() == case["prediction_meant"], case["what"]
        # Else the published code chooses another class than is meant
        if "no remaining view" not in case["what"]:
            assert found.tolist() == case["votes"]
