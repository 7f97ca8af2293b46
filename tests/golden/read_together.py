"""Methods that answer for all test images together."""

from dataclasses import replace

import pytest
import torch
from harness import Golden, drawn, drawn_features, image_features
from read_at_test_time import method_of
from torch.nn.functional import normalize

from trainers.base.together import Task
from trainers.em_dirichlet import matched
from trainers.stata import Anchored
from trainers.transclip import GAMMAS, Mixture


def shown(f, seed, key):
    """The unit features and labels of further images of a file; None if it has none."""
    if key not in f:
        return None
    return normalize(image_features(f, seed, f[key])[0], dim=1), torch.tensor(f[key])


def task_of(golden):
    f = golden.case["features"]
    others = {"support": shown(f, 8, "support_labels"), "val": shown(f, 13, "val_labels")}
    task = Task.of(*drawn_features(f), **others)
    golden.same("logits_zeroshot_first3", lambda: 100 * task.cosines[:3])
    return task


def accuracy(logits, case):
    labels = torch.tensor(case["features"]["test_labels"])
    return 100 * float((logits.argmax(dim=1) == labels).float().mean())


def check_transclip(golden: Golden):
    case = golden.case
    task = task_of(golden)
    if "predictions_given" in golden.figures:
        f = case["features"]
        texts = normalize(task.texts + 0.03 * drawn(21, f["classes"], f["dim"]), dim=1)
        given = (60 * task.features @ texts.T).softmax(dim=1)
        golden.same("predictions_given", given, abs=1e-4)
        logits = method_of(case).predict_task(Task(task.features, task.texts, task.cosines, given))
        golden.same("z_meant", logits.exp(), abs=1e-4)
        golden.same("accuracy_meant", accuracy(logits, case), abs=1e-3)
        return
    method = method_of(case, **({"ALIGNED": False} if task.support else {}))
    mixture = Mixture(task, method.settings)
    golden.same("mu_start_first8", mixture.means[:, :8])
    mixture.assign()
    golden.same("z_first", mixture.z, abs=1e-4)
    mixture.fit(GAMMAS[0] if task.support else 0.0)
    mixture.assign()
    golden.same("z_second", mixture.z, abs=1e-4)
    logits = method.predict_task(task)
    if not task.support:
        golden.same("z", logits.exp(), abs=1e-4)
        golden.same("accuracy", accuracy(logits, case), abs=1e-3)
        return
    mixture = Mixture(task, method.settings)
    for row in golden.figures["by_gamma"]:
        z = mixture.rounds(row["gamma"])
        golden.same("mu_end_first8", mixture.means[:, :8], row)
        golden.same("variance_end_first8", mixture.variance[:8], row, rel=1e-5)
        golden.same("accuracy", accuracy(z, case), row, abs=1e-3)
    golden.same("z_of_last_gamma", z, abs=1e-4)
    golden.same("z_of_chosen_gamma", logits.exp(), abs=1e-4)


def check_stata(golden: Golden):
    task = task_of(golden)
    method = method_of(golden.case)
    state = Anchored(task, method.settings)
    golden.same("cov_start_first8", state.start[:8], rel=1e-5)
    state.assign()
    golden.same("z_first", state.z, abs=1e-4)
    state.fit()
    golden.same("beta_first", state.shares, abs=1e-5)
    golden.same("mu_first_first8", state.means[:, :8])
    golden.same("cov_first_first8", state.variances[:, :8], rel=1e-5)
    state.assign()
    golden.same("z_second", state.z, abs=1e-4)
    state = Anchored(task, method.settings)
    golden.same("z", state.rounds(), abs=1e-4)
    golden.same("mu_end_first8", state.means[:, :8])
    golden.same("cov_end_first8", state.variances[:, :8], rel=1e-5)
    golden.same("accuracy", accuracy(method.predict_task(task), golden.case), abs=1e-3)


def check_em_dirichlet(golden: Golden):
    case = golden.case
    task = task_of(golden)
    method = method_of(case)
    sharp = method.settings.T
    z = (sharp * task.cosines.double()).softmax(dim=1)
    golden.same("z_query_first3", z[:3], abs=1e-5)
    support, labels = task.support or (task.features[:0], torch.zeros(0, dtype=torch.long))
    seen = (sharp * (support @ task.texts.T).double()).softmax(dim=1)
    u, a = method_of(case, ITER=1).rounds(z, seen, labels)
    golden.same("alpha_first", a, largest=1e-4)
    if not case["cfg"]["hard"]:
        golden.same("u_first", u, abs=1e-4)
    u, a = method.rounds(z, seen, labels)
    golden.same("alpha_end", a, largest=1e-3)
    golden.same("clusters", u.argmax(dim=1))
    if not len(support):
        golden.same("prediction_basic_matching", matched(u.argmax(dim=1), z, False))
    answers = method.predict_task(task)
    key = "prediction_matched" if "prediction_matched" in golden.figures else "prediction"
    golden.same(key, answers.argmax(dim=1))
    assert answers.shape == z.shape


def check_zlap(golden: Golden):
    case = golden.case
    task = task_of(golden)
    inductive = {"inductive": "dense", "sparse-inductive": "sparse"}.get(case["kind"], "")
    method = method_of(case, INDUCTIVE=inductive)
    known = task.features
    if inductive:
        task = replace(task, support=shown(case["features"], 18, "unlabelled_labels"))
        known, _ = task.support
    similarities, nodes = method.similarities(known, known, task.texts)
    similarities = method.scaled(similarities, *similarities.aminmax()).clamp(min=0)
    first = method.graph(similarities, nodes, len(task.texts)).to_dense()[len(task.texts)]
    edges = [[node, float(first[node])] for node in first.nonzero().flatten().tolist()]
    assert dict(edges) == pytest.approx(dict(golden.figures["edges_of_first_image"]), abs=1e-5)
    scores = method.predict_task(task).exp()
    golden.same("scores", scores, largest=1e-5)
    golden.same("accuracy", accuracy(scores, case), abs=1e-3)
