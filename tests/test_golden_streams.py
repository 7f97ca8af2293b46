"""Methods that read features of views, alone or in a stream, compute what their published
implementations compute.
"""

import numpy as np
import pytest
import torch
from golden_inputs import drawn, drawn_features
from marks import case_of, golden
from test_golden import AFTER, BEFORE, close
from test_golden_test_time import settings_of
from torch.nn.functional import normalize

import trainers
from clip.random_weights import random_clip
from inference.description import configuration
from trainers.base.features import by_class
from trainers.base.method import Classes


def pytest_generate_tests(metafunc):
    def chosen(figures):
        case = case_of(figures)
        return case.get("kind") in ("stream", "test-time") and case.get("input") == "features"

    golden(metafunc, "figures", chosen)


def method_of(case):
    """The method of a case on a CLIP with features of its width."""
    features = case["features"]
    names = [f"class {number}" for number in range(features["classes"])]
    settings = settings_of(case["cfg"])
    scale = settings.pop("SCALE", 100.0)
    if "support_labels" in features:
        settings["SUPPORT"] = True
    kind = trainers.methods()[case["trainer"]]
    cfg = configuration(case["trainer"])
    section = kind.section()
    cfg.merge_from_other_cfg({"TRAINER": {section: {"PREC": "fp32", **settings}}})
    method = kind(cfg, Classes(names), torch.device("cpu"))
    sizes = {"width": 64, "layers": 1}
    clip = random_clip("ViT-B-16", {"image_size": 16, **sizes}, sizes, features["dim"])
    clip.logit_scale.data.fill_(np.log(scale))
    method.model = method.Model(clip, method.build_prompts(clip, names), "fast")
    return method


def views_and_texts(f):
    """Unit features: (images, views, dim) and (classes, dim)."""
    shape = len(f["test_labels"]), f["views"], f["dim"]
    noise = f["view_noise"] * drawn(17, *shape)
    noise[:, 0] = 0
    centre = drawn(12, 2, f["dim"])
    means = drawn(10, f["classes"], f["dim"])
    images = centre[0] + f["image_mean"] * means[f["test_labels"]]
    images = images + f["image_noise"] * drawn(9, len(images), f["dim"])
    return normalize(images[:, None] + noise, dim=2), drawn_features(f)[1]


def test_features(figures):
    case = figures["case"]
    method = method_of(case)
    views, texts = views_and_texts(case["features"])
    method.texts = texts
    CHECKS[case["trainer"]](method, views, figures)


def check_tps(method, views, figures):
    close(method.model.logits(views[:, 0], method.texts), figures["logits_before"], BEFORE)
    answers = []
    for image, norm, first in zip(
        views, figures["shift_norms"], figures["shift_first8"], strict=True
    ):
        _, shift = method.shifted(image)
        assert shift.norm().item() == pytest.approx(norm, abs=1e-5)
        close(shift[:, :8], first, 1e-5)
        answers.append(method.answer(image, {}))
    close(torch.stack(answers), figures["logits_after"], AFTER)


def check_dmn(method, views, figures):
    f = figures["case"]["features"]
    if "support_labels" in f:
        means = drawn(10, f["classes"], f["dim"])[f["support_labels"]]
        noise = drawn(8, 1, len(means), f["dim"])[0]
        images = drawn(12, 2, f["dim"])[0] + f["image_mean"] * means + f["image_noise"] * noise
        labels = torch.tensor(f["support_labels"])
        method.support = by_class(normalize(images, dim=1), labels, f["classes"])
    state = method.new_state()
    slots = []
    answers = []
    for image in views:
        before = state["ENTROPIES"].clone()
        answers.append(method.answer(image, state).exp())
        changed = (state["ENTROPIES"] != before).nonzero().tolist()
        slots += changed or [None]
    assert slots == figures["written_slot"]
    close(torch.stack(answers), figures["sum"], 1e-4)


def check_boostadapter(method, views, figures):
    state = method.new_state()
    close(100 * views[:, 0] @ method.texts.T, figures["logits_before"], BEFORE)
    answers = torch.stack([method.answer(image, state) for image in views])
    close(answers, figures["logits_after"], AFTER)
    for cache, sizes in figures["cache_sizes_end"].items():
        counts = state[f"{cache.upper()}_ENTROPIES"].isfinite().sum(dim=1)
        found = {str(label): int(count) for label, count in enumerate(counts) if count}
        assert found == sizes


CHECKS = {"TPS": check_tps, "DMN": check_dmn, "BoostAdapter": check_boostadapter}
