"""Methods that answer for many images together compute what their published implementations
compute.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from golden_inputs import drawn, drawn_features
from marks import case_of, golden
from test_golden import close
from test_golden_test_time import settings_of
from torch.nn.functional import normalize

import trainers
from inference.description import configuration
from trainers.base.method import Classes
from trainers.base.together import Task
from trainers.em_dirichlet import matched
from trainers.stata import Anchored
from trainers.transclip import GAMMAS, Mixture

NAMES = {"EM-Dirichlet": "EMDirichlet"}


def pytest_generate_tests(metafunc):
    kinds = "transductive", "inductive", "sparse-inductive"
    golden(metafunc, "figures", lambda figures: case_of(figures).get("kind") in kinds)


def method_of(case, **settings):
    name = NAMES.get(case["trainer"], case["trainer"])
    if case["cfg"].get("hard"):
        name = f"Hard{name}"
    kind = trainers.methods()[name]
    cfg = configuration(name)
    known = settings_of(case["cfg"]) | settings
    own = {key: value for key, value in known.items() if hasattr(kind.Settings, key)}
    cfg.merge_from_other_cfg({"TRAINER": {kind.section(): own}})
    names = [f"class {number}" for number in range(case["features"]["classes"])]
    return kind(cfg, Classes(names), torch.device("cpu"))


def shown(f, seed, key):
    """The unit features and labels of further images of a file; None if it has none."""
    if key not in f:
        return None
    labels = torch.tensor(f[key])
    images = drawn(12, 2, f["dim"])[0] + f["image_mean"] * drawn(10, f["classes"], f["dim"])[labels]
    noise = f["image_noise"] * drawn(seed, len(labels), f["dim"])
    return normalize(images + noise, dim=1), labels


def task_of(f):
    features, texts = drawn_features(f)
    others = {"support": shown(f, 8, "support_labels"), "val": shown(f, 13, "val_labels")}
    return Task.of(features, texts, **others)


def test_answers(figures):
    case = figures["case"]
    task = task_of(case["features"])
    if "logits_zeroshot_first3" in figures:
        close(100 * task.cosines[:3], figures["logits_zeroshot_first3"], 2e-4)
    CHECKS[case["trainer"]](task, case, figures)


def accuracy(logits, case):
    labels = torch.tensor(case["features"]["test_labels"])
    return 100 * float((logits.argmax(dim=1) == labels).float().mean())


def check_transclip(task, case, figures):
    if "predictions_given" in figures:
        f = case["features"]
        texts = task.texts + 0.03 * drawn(21, f["classes"], f["dim"])
        given = (60 * task.features @ normalize(texts, dim=1).T).softmax(dim=1)
        close(given, figures["predictions_given"], 1e-4)
        on_top = Task(task.features, task.texts, task.cosines, given)
        logits = method_of(case).answer(on_top)
        close(logits.exp(), figures["z_meant"], 1e-4)
        assert accuracy(logits, case) == pytest.approx(figures["accuracy_meant"], abs=1e-3)
        return
    published = {"ALIGNED": False} if task.support else {}
    method = method_of(case, **published)
    mixture = Mixture(task, method.settings)
    close(mixture.means[:, :8], figures["mu_start_first8"], 1e-5)
    mixture.assign()
    close(mixture.z, figures["z_first"], 1e-4)
    mixture.fit(GAMMAS[0] if task.support else 0.0)
    mixture.assign()
    close(mixture.z, figures["z_second"], 1e-4)
    if not task.support:
        logits = method.answer(task)
        close(logits.exp(), figures["z"], 1e-4)
        assert accuracy(logits, case) == pytest.approx(figures["accuracy"], abs=1e-3)
        return
    mixture = Mixture(task, method.settings)
    for row in figures["by_gamma"]:
        z = mixture.rounds(row["gamma"])
        close(mixture.means[:, :8], row["mu_end_first8"], 1e-5)
        assert mixture.variance[:8].tolist() == pytest.approx(row["variance_end_first8"], rel=1e-5)
        assert accuracy(z, case) == pytest.approx(row["accuracy"], abs=1e-3)
    close(z, figures["z_of_last_gamma"], 1e-4)
    close(method.answer(task).exp(), figures["z_of_chosen_gamma"], 1e-4)


def check_stata(task, case, figures):
    method = method_of(case)
    state = Anchored(task, method.settings)
    assert state.start[:8].tolist() == pytest.approx(figures["cov_start_first8"], rel=1e-5)
    state.assign()
    close(state.z, figures["z_first"], 1e-4)
    state.fit()
    close(state.shares, figures["beta_first"], 1e-5)
    close(state.means[:, :8], figures["mu_first_first8"], 1e-5)
    near_to(state.variances[:, :8], figures["cov_first_first8"])
    state.assign()
    close(state.z, figures["z_second"], 1e-4)
    state = Anchored(task, method.settings)
    z = state.rounds()
    close(z, figures["z"], 1e-4)
    close(state.means[:, :8], figures["mu_end_first8"], 1e-5)
    near_to(state.variances[:, :8], figures["cov_end_first8"])
    assert accuracy(method.answer(task), case) == pytest.approx(figures["accuracy"], abs=1e-3)


def near_to(got, expected):
    assert np.allclose(got.numpy(), np.array(expected), rtol=1e-5, atol=0)


def check_em_dirichlet(task, case, figures):
    method = method_of(case)
    f = case["features"]
    sharp = method.settings.T
    z = (sharp * task.cosines.double()).softmax(dim=1)
    close(z[:3], figures["z_query_first3"], 1e-5)
    support, labels = task.support or (task.features[:0], torch.zeros(0, dtype=torch.long))
    seen = (sharp * (support @ task.texts.T).double()).softmax(dim=1)
    once = method_of(case, ITER=1)
    u, a = once.rounds(z, seen, labels)
    close(a, figures["alpha_first"], 1e-4 * np.max(figures["alpha_first"]))
    if not case["cfg"]["hard"]:
        close(u, figures["u_first"], 1e-4)
    u, a = method.rounds(z, seen, labels)
    close(a, figures["alpha_end"], 1e-3 * np.max(figures["alpha_end"]))
    assert u.argmax(dim=1).tolist() == figures["clusters"]
    if not len(support):
        basic = matched(u.argmax(dim=1), z, False)
        assert basic.tolist() == figures["prediction_basic_matching"]
    expected = figures.get("prediction_matched") or figures["prediction"]
    answers = method.answer(task)
    assert answers.argmax(dim=1).tolist() == expected
    assert answers.shape == (len(f["test_labels"]), f["classes"])


def check_zlap(task, case, figures):
    inductive = {"inductive": "dense", "sparse-inductive": "sparse"}.get(case["kind"], "")
    method = method_of(case, INDUCTIVE=inductive)
    known = task.features
    if inductive:
        task = replace(task, support=shown(case["features"], 18, "unlabelled_labels"))
        known, _ = task.support
    similarities, nodes = method.similarities(known, known, task.texts)
    similarities = method.scaled(similarities, *similarities.aminmax()).clamp(min=0)
    graph = method.graph(similarities, nodes, len(task.texts)).to_dense()
    found = {
        int(node): float(graph[len(task.texts), node]) for node in graph[len(task.texts)].nonzero()
    }
    assert found == pytest.approx(
        {int(node): weight for node, weight in figures["edges_of_first_image"]}, abs=1e-5
    )
    scores = method.answer(task).exp()
    close(scores, figures["scores"], 1e-5 * np.max(figures["scores"]))
    assert accuracy(scores, case) == pytest.approx(figures["accuracy"], abs=1e-3)


@pytest.mark.parametrize("inductive", ["dense", "sparse"])
def test_scaled_inductive_zlap_answers_each_image_alone(inductive):
    images = {"classes": 4, "dim": 16}
    cfg = {"K": 3, "SCALE_SIM": True, "INDUCTIVE": inductive}
    method = method_of({"trainer": "ZLaP", "features": images, "cfg": cfg})
    features = normalize(drawn(1, 30, 16) + 1, dim=1)
    texts = normalize(drawn(2, 4, 16) + 1, dim=1)
    task = Task.of(features, texts, support=(normalize(drawn(3, 20, 16) + 1, dim=1), None))
    together = method.answer(task)
    for place in (0, 7, 29):
        alone = method.answer(replace(task, features=features[place : place + 1]))
        close(alone[0], together[place].tolist(), 1e-5)


CHECKS = {
    "TransCLIP": check_transclip,
    "StatA": check_stata,
    "EM-Dirichlet": check_em_dirichlet,
    "ZLaP": check_zlap,
}
