"""The heads of a fit, the choice among them, and its estimate."""

from functools import partial
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from marks import one_line

from fit import choose, trials
from fit.candidates import (
    CANDIDATES,
    KERNEL,
    VISION,
    VISION_ONLY,
    VISION_WEIGHT,
    VOTING,
    Candidate,
    ensemble,
)
from fit.decision import decide_among
from fit.heads import Heads, logit_std
from fit.options import FitRequest
from fit.photos import Photos
from fit.read_images import Photo
from fit.trials import Backbone, Examples
from inference import export
from inference.classifier import PromptedClassifier
from inference.load import load
from inference.sample import Sample
from trainers.base.features import CachedOutput

ONE = {"AUGMENT_EPOCH": 1}
FORMER = [  # which models of earlier versions have
    Candidate("CLAP", ONE, {"LR": 0.1}),
    Candidate("SSText"),
    Candidate("TaskRes", ONE),
]


@pytest.fixture
def heads(tiny):
    return Heads(PromptedClassifier.zero_shot(str(tiny), ["red", "green", "blue"]))


def features_of(labels):
    """Features before the projection that say the label."""
    noise = torch.randn(len(labels), 64, generator=torch.Generator().manual_seed(1))
    return noise + 3 * torch.eye(64)[labels]


def decided(heads, features, labels, scenes, methods):
    examples = Examples(features, labels, np.array(scenes), heads.names)
    candidates = [one for one in CANDIDATES if one.method in methods]
    request = FitRequest(images=Path("photos"), to=Path("model"))
    return decide_among([Backbone("", heads, examples, candidates)], request)[1]


@pytest.mark.parametrize("name", ["Ensemble", "KernelEnsemble", "Linear"])
def test_the_exported_ensemble_is_the_sum_of_its_members(
    name, heads, eurosat, tiny, command, tmp_path
):
    labels = torch.arange(12) % 3
    seen = features_of(labels)
    left_out = {"Ensemble": {KERNEL}, "Linear": {*VISION_ONLY}}
    methods = {*VOTING, *(one.method for one in FORMER)} - left_out.get(name, set())
    tried = *CANDIDATES, *FORMER
    members = [(one, 0.5 + place) for place, one in enumerate(tried) if one.method in methods]
    expected = sum(
        weight * heads.answers(one, (seen, labels), seen[:5]) for one, weight in members
    ).detach()
    ensemble = heads.classifier(members, (seen, labels), {})
    with torch.no_grad():
        found = ensemble.model_for()(CachedOutput(heads.inputs(name, seen[:5])))
    assert {one.method for one, _ in members} == methods
    np.testing.assert_allclose(found, expected, atol=1e-3 * float(expected.abs().max()))
    settings = ensemble.description.settings
    assert ensemble.method == name and [*settings["WEIGHTS"]] == [weight for _, weight in members]
    assert [*settings["MEMBERS"]] == [one.name for one, _ in members]
    (tmp_path / "model").mkdir()
    ensemble.save(tmp_path / "model")
    image = next(eurosat.glob("eurosat/2750/*/*"))
    loaded = load(tmp_path / "model", backbone=str(tiny))
    assert torch.allclose(loaded.logits([image]), ensemble.logits([image]), rtol=1e-4)
    command.works(export, tmp_path / "model", "--to", tmp_path / "out", "--backbone", tiny)
    card = (tmp_path / "out/README.md").read_text()
    assert f"# {name} for" in card and "CLAP LR 0" in card
    with one_line("was learned for its own classes"):
        loaded.probabilities([image], ["a cat", "a dog"])


@pytest.mark.parametrize("methods", [("ZeroshotCLIP",), ("ZeroshotCLIP", "GDA", "ZSLP")])
def test_certainty_is_fitted_on_the_logits_of_the_model(heads, methods):
    labels = torch.arange(24) % 3
    features = features_of(labels)
    found = decided(heads, features, labels, range(24), methods)
    held = choose.folds(labels.numpy(), np.arange(24), 1)
    scales = {
        one: logit_std(heads.answers(one, (features, labels), features)) for one, _ in found.chosen
    }
    logits = sum(
        weight * scales[one] * heads.held_out(one, (features, labels), held)
        for one, weight in found.chosen
    )
    np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-4)
    assert found.chosen == [(CANDIDATES[0], 1.0)] or len(methods) > 1


@pytest.mark.parametrize("rival", ["zero-shot CLIP", "the ensemble"])
def test_a_winner_must_lead(rival):
    """The lead of the last candidate, over zero-shot CLIP as an ensemble, or over an ensemble as a
    single one, rises from none to many errors. Zero-shot CLIP is taken without a lead, an ensemble
    below one error."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    sample = Sample.of(labels)
    margins = rng.normal(0.5, 1, (2, 60))
    below = above = 0
    for shift in np.linspace(-0.5, 2, 101):
        of_candidates = [margins[0], margins[1] + shift]
        if rival == "the ensemble":
            of_candidates.insert(0, np.full(60, -9.0))  # zero-shot CLIP, which is far worse
        logits = np.zeros((len(of_candidates), 1, 60, 2))
        logits[:, 0, np.arange(60), labels] = of_candidates
        factors = choose.inverse_temperatures(logits, sample)
        default = {0: 0.0, 1: 1.0}  # the last candidate of two, and the second of three
        ensemble = choose.losses(
            choose.combine(choose.stack(logits, sample, default), logits), labels
        )
        last, first = (choose.losses(factors[place] * logits[place], labels) for place in (-1, 0))
        lead = sample.in_errors(first - ensemble if rival == "zero-shot CLIP" else ensemble - last)
        taken = choose.choose(logits, sample, default)[-1] > 0
        assert taken == (lead > (rival == "the ensemble")), (shift, lead)
        below += 0 < lead <= 1
        above += lead > 1
    assert below > 3 and above > 3


def test_a_beaten_candidate_stops(heads):
    labels = torch.arange(60) % 3
    examples = Examples(features_of(labels), labels, np.arange(60), heads.names)
    done = []

    def wrong(row, check):
        found = torch.full((60, 3), torch.nan)
        for fold in range(5):
            out = torch.from_numpy(row == fold)
            found[out] = torch.eye(3)[(labels[out] + 1) % 3]
            done.append(fold)
            check(found)
        return found

    def trained(row):
        return [(Candidate("MPL"), partial(wrong, row))]

    candidates = [CANDIDATES[0], Candidate(VISION)]
    request = FitRequest(images=Path("photos"), to=Path("model"))
    backbone = Backbone("", heads, examples, candidates, trained)
    _, found = decide_among([backbone], request)
    assert found.rows[-1]["fault"] == (
        "0.0% of the first 12 held-out images right, and the best candidate has 90.0% of all"
    )
    assert done == [0]


def test_a_terminal_shows_how_far_a_fit_is(heads, monkeypatch):
    class Terminal(StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stderr", screen := Terminal())
    labels = torch.arange(24) % 3
    decided(heads, features_of(labels), labels, range(24), ("ZeroshotCLIP", "GDA"))
    for stage in ("GDA ALPHA 10.0: ", "choice and estimate: ", "learning curve: "):
        assert f"{stage}  0%" in screen.getvalue()


def test_logits_of_fewer_images_count_as_much(heads):
    labels = torch.arange(12) % 3
    features = features_of(labels)
    held = np.arange(12)[None] // 6
    candidate = Candidate("GDA", {"ALPHA": 10.0, "AUGMENT_EPOCH": 1})
    found = heads.held_out(candidate, (features, labels), held)
    for fold in (0, 1):
        out = held[0] == fold
        answers = heads.answers(candidate, (features[~out], labels[~out]), features)
        scale = answers[~out].std(dim=1, correction=0).mean()
        assert abs(scale - 1) > 0.1
        torch.testing.assert_close(found[0, out], answers[out] / scale)


def test_many_images_choose_the_weights_and_few_keep_the_default(random_seed):
    rng = np.random.default_rng(random_seed)
    default = np.array([0.25, 0.5, 0.25])
    found, changes = {}, {4: [], 400: []}
    for images in (4, 400) * 5:  # a single draw of 4 images can move as far as 400 do
        labels = np.arange(images) % 4
        logits = rng.normal(size=(3, 2, images, 4))
        logits[1] += 2 * np.eye(4)[labels]
        sample = Sample.of(labels)
        weights = choose.stack(logits, sample, dict(enumerate(default)))
        combined = choose.combine(default, logits)[None]
        scaled = default * choose.inverse_temperatures(combined, sample)
        found[images] = weights / scaled.sum()
        changes[images].append(np.abs(found[images] - default).max())

        def loss(weights, logits=logits, labels=labels, images=images, scaled=scaled):
            fit = choose.losses(choose.combine(weights, logits), labels).mean()
            return fit + 10 * ((weights - scaled) ** 2).sum() / images

        assert weights.min() >= 0
        for step in 0.01 * np.array([*np.eye(3), *-np.eye(3)]):  # no step lowers the loss
            assert loss(np.maximum(weights + step, 0)) > loss(weights) - 1e-6
    assert found[400][1] > 0.6 > 0.3 > found[400][[0, 2]].max()
    assert np.mean(changes[4]) < np.mean(changes[400])


def test_the_five_most_useful_candidates_vote():
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 4
    logits = rng.normal(size=(8, 2, 400, 4))
    useful = [0, 2, 3, 5, 7]
    logits[useful] += 2 * np.eye(4)[labels]
    logits[[1, 4, 6]] += 0.5 * np.eye(4)[labels]
    sample = Sample.of(labels)
    default = dict.fromkeys(range(8), 1.0)
    weights = choose.vote(logits, sample, default)
    assert np.flatnonzero(weights).tolist() == useful
    assert np.count_nonzero(choose.stack(logits, sample, default)) > 5
    again = choose.stack(logits, sample, dict.fromkeys(useful, 1.0))
    np.testing.assert_allclose(weights, again, atol=1e-3)


def test_names_weigh_as_much_as_images_agree_with_them():
    found = [ensemble(CANDIDATES, evidence) for evidence in (0.0, 2.0)]
    without, agreeing = (
        {CANDIDATES[place]: weight for place, weight in weights.items()} for weights in found
    )
    assert {one.method for one, weight in without.items() if weight} == {*VISION_ONLY}
    of_method = dict.fromkeys(VOTING, 0.0)
    for one, weight in agreeing.items():
        of_method[one.method] += weight
    assert of_method[VISION] + of_method[KERNEL] == pytest.approx(sum(without.values()))
    assert sum(without.values()) == pytest.approx(VISION_WEIGHT)
    assert of_method["ZeroshotCLIP"] == 2
    assert of_method["ZSLP"] == pytest.approx(4)
    assert ensemble([CANDIDATES[0], CANDIDATES[-1]], 5) == {0: 1.0}  # a single head
    others = [one for one in CANDIDATES if one.method in ("ZeroshotCLIP", "ZSLP", "GDA")]
    assert sum(ensemble(others, 0.0).values()) == pytest.approx(VISION_WEIGHT)


@pytest.mark.parametrize("images", [10, 40])
def test_evidence_for_names_needs_several_images(images, random_seed):
    rng = np.random.default_rng(random_seed)
    labels = np.arange(images) % 10
    noise = rng.normal(size=(images, 10))
    sample = Sample.of(labels)
    strong = choose.evidence(3 * np.eye(10)[labels] + noise, sample)
    against = choose.evidence(-3 * np.eye(10)[labels] + noise, sample)
    assert against == 0 < 0.5 < strong


def test_the_estimate_adds_what_more_images_gain():
    labels = np.repeat(np.arange(5), 20)
    logits = np.eye(5)[(labels + (np.arange(100) % 5 == 0)) % 5][None]  # 80% are right
    sample = Sample.of(labels)
    known = choose.estimate(logits, sample, 5, 80.0, 20)
    assert [known.accuracy, known.low, known.high] == pytest.approx([80, 68.89, 87.84], abs=0.01)
    # Six doublings from a quarter of an image to 16 have divided the error by three
    assert choose.estimate(logits, sample, 5, 40.0, 20).accuracy == pytest.approx(
        100 - 20 / 3 ** (np.log2(5 / 4) / 6)
    )
    assert choose.gain(100, 40.0, 20) == choose.gain(100 + 1e-9, 40.0, 20) == 0
    assert choose.gain(95, 5.0, 16) < choose.gain(65, 5.0, 16) < 100 - 65
    assert (
        choose.estimate(0 * logits + np.eye(5)[(labels + 1) % 5], sample, 5, 90.0, 20).accuracy == 0
    )


def test_surely_wrong_images_lower_the_estimate():
    found = choose.Estimate(80.0, 60.0, 90.0, 50, 40.0, 79.0)
    less = choose.with_missed(found, 0.2)
    assert less.accuracy == pytest.approx(64) and less.images == 50
    assert (less.low, less.high) == choose.interval(less.accuracy, 50)


def test_many_logits_are_kept_of_some_scenes_only(heads, monkeypatch):
    monkeypatch.setattr(trials, "MOST_LOGITS", 600)
    monkeypatch.setattr(trials, "EXACT", 1)  # and in single precision
    labels = torch.arange(120) % 3
    scenes = (torch.arange(120) // 6 * 3 + labels).tolist()
    found = decided(heads, features_of(labels), labels, scenes, ("ZeroshotCLIP", "GDA"))
    assert 10 < len(found.trials.held) <= 600 // (2 * 3 * 3)
    assert found.logits.dtype == np.float32
    assert any("choose and estimate" in note for note in found.notes)
    # Of all 20, not of those that are kept
    assert [round(number) for number, _ in found.curve] == [0, 4, 8, 16]
    scenes = [scenes[place] for place in found.trials.held]
    assert all(scenes.count(scene) == 2 for scene in scenes)


def test_two_classes_are_enough_and_one_is_not():
    images = [Photo(f"{label}.png", label) for label in ("red", "blue")]
    rows = {photo.path: SimpleNamespace(pixels_sha256=photo.path) for photo in images}
    assert Photos.usable(images, rows, {}).names == ["blue", "red"]
    with one_line("fewer than two classes"):
        Photos.usable(images[:1], rows, {})
    rows["blue.png"] = rows["red.png"]
    left_out = "Left out as they are in two classes: 2 images, such as red.png (blue and red)"
    with one_line("fewer than two classes", left_out):
        Photos.usable(images, rows, {})
