"""Cross-conformal sets: `tools/fit.py --sets cross`."""

import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn import class_folders
from marks import one_line, parquet_library, thorough_but

from fit import command as fit
from fit.candidates import CANDIDATES, ZERO_SHOT
from fit.cross import add_cross_sets, check_cross
from fit.decision import decide_among
from fit.estimator import FITTED_AGAIN, Classifier
from fit.heads import Heads
from fit.plan import Plan
from fit.request import FitRequest
from fit.rows import Photo
from fit.trials import Backbone, Examples
from inference import embed, export, predict
from inference.bank import Bank
from inference.calibrated import Calibration, calibration_in
from inference.calibration import log_softmax
from inference.classifier import PromptedClassifier
from inference.models import load
from inference.options import LoadOptions
from inference.sets import KINDS, Cluster, Sets
from trainers.base.features import CachedOutput

WIDTH = 64  # of the tiny CLIP's features before the projection
QUICK = ["--methods", "GDA", "SSText", "VisionProbe", "KernelProbe", "--minutes", "0"]


def centroids(x, y):
    """Logits by the squared distance to the mean of each class."""
    means = np.stack([x[y == label].mean(axis=0) for label in range(y.max() + 1)])
    return lambda rows: -((rows[:, None] - means) ** 2).sum(axis=2)


def dealt(labels, number, rng):
    """Folds, stratified by class."""
    folds = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        places = rng.permutation(np.flatnonzero(labels == label))
        folds[places] = np.arange(len(places)) % number
    return folds


def crossed(x, y, folds, fitted=None):
    """Sets, and the model of each fold."""
    models = [centroids(x[folds != fold], y[folds != fold]) for fold in range(folds.max() + 1)]
    logits = np.stack([models[fold](row[None])[0] for row, fold in zip(x, folds, strict=True)])
    fitted = fitted or Sets.fit(logits, y)
    return fitted.of_folds(logits, y, folds), models


def drawn(images, rng, classes=4):
    """Images of classes that overlap."""
    y = np.tile(np.arange(classes), images // classes)
    return rng.normal(size=(len(y), 6)) + 1.2 * np.eye(6)[y], y


def literal(sets, models, x, y, folds, rows):
    """The p-values as they are written on paper, one after another."""
    known = zip(x, y, folds, strict=True)
    scores = [-log_softmax(models[fold](row[None]))[0, label] for row, label, fold in known]
    p = np.empty((len(rows), 4))
    for image, row in enumerate(rows):
        for label in range(4):
            cluster = [range(4)] + [one.classes for one in sets.clusters if label in one.classes]
            inside = [i for i in range(len(y)) if y[i] in cluster[-1]]
            at_least = 0
            for i in inside:
                own = -log_softmax(models[folds[i]](row[None]))[0, label]
                at_least += scores[i] >= own
            p[image, label] = (1 + at_least) / (len(inside) + 1)
    return p


@pytest.mark.parametrize("clusters", [[], [(0,), (1, 3)]])
def test_p_values_are_those_on_paper(clusters, random_seed):
    rng = np.random.default_rng(random_seed)
    x, y = drawn(40, rng)
    folds = dealt(y, 3, rng)
    clusters = [Cluster(classes, (0.0,)) for classes in clusters]
    sets, models = crossed(x, y, folds, Sets("lac", (0.0,), clusters))
    rows = np.concatenate([drawn(8, rng)[0], x[:4]])  # of known images scores are equal
    logits = np.stack([model(rows) for model in models])
    expected = literal(sets, models, x, y, folds, rows)
    assert sets.p_values(logits) == pytest.approx(expected, abs=1e-12)
    assert (sets.apply(logits, 0.8) == (expected > 0.2)).all()


def test_one_fold_is_split_conformal(random_seed):
    rng = np.random.default_rng(random_seed)
    for kind in KINDS:
        z = rng.normal(size=(60, 5))
        y = rng.integers(0, 5, 60)
        split = Sets.fit(z[:30], y[:30], kind)
        cross = split.of_folds(z[:30], y[:30], np.zeros(30, dtype=np.int64))
        for coverage in (0.5, 0.8, 0.9, 29 / 31):
            assert (cross.apply(z[None], coverage) == split.apply(z, coverage)).all()


@pytest.mark.parametrize("by_class", [False, True])
def test_new_images_are_covered(by_class):
    rng = np.random.default_rng(1)
    covered = {0.8: [], 0.9: []}
    for _ in range(150):
        x, y = drawn(80, rng)
        folds = dealt(y, 5, rng)
        clusters = [Cluster((label,), (0.0,)) for label in range(4)] * by_class
        sets, models = crossed(x, y, folds, Sets("lac", (0.0,), clusters))
        rows, labels = drawn(200, rng)
        logits = np.stack([model(rows) for model in models])
        for coverage, found in covered.items():
            inside = sets.apply(logits, coverage)[np.arange(200), labels]
            found.append([inside[labels == label].mean() for label in range(4)])
    for coverage, found in covered.items():
        mean = np.mean(found)
        assert 2 * coverage - 1 < mean and coverage - 0.01 < mean < coverage + 0.06
        if by_class:
            assert np.mean(found, axis=0) == pytest.approx(mean, abs=0.02)


@pytest.fixture(scope="module")
def photos(eurosat, tmp_path_factory):
    return class_folders(eurosat, tmp_path_factory.mktemp("photos"), 5)


@pytest.fixture(scope="module")
def fitted(photos, tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted") / "model"
    line = [photos, "--to", folder, "--backbone", tiny, "--sets", "cross", *QUICK]
    fit.main([*map(str, line)])
    return folder


@pytest.fixture
def paths(photos):
    return [str(path) for path in sorted(photos.glob("*/*"))[::4]]


def loaded(folder, tiny):
    return load(folder, LoadOptions(backbone=str(tiny)))


def answers(command, folder, tiny, places):
    """The sets that `tools/predict.py` gives."""
    asked = [folder, *places, "--backbone", tiny, "--sets", "0.8", "--json"]
    rows = json.loads(command(predict, *asked).printed)
    return [
        [(each["class"], pytest.approx(each["probability"])) for each in row["set"]] for row in rows
    ]


def test_sets_are_the_same_wherever_they_are_asked(fitted, photos, paths, tiny, command, tmp_path):
    said = loaded(fitted, tiny).predict(paths)
    expected = said.sets(0.8)
    assert sum(map(len, expected)) > 0 and said.of_folds.shape[1] == 5
    assert answers(command, fitted, tiny, paths) == expected
    assert [len(one) for one in said[2:4].sets(0.8)] == [len(one) for one in expected[2:4]]
    assert loaded(fitted, tiny).predict([]).sets(0.8) == []
    command.works(export, fitted, "--backbone", tiny, "--to", tmp_path / "out")
    assert "`folds/*`" in (tmp_path / "out/README.md").read_text()
    assert answers(command, tmp_path / "out", tiny, paths) == expected
    copied = Classifier.load(fitted, backbone=str(tiny))
    again = pickle.loads(pickle.dumps(copied))
    assert again.predict_sets(paths, 0.8) == [[name for name, _ in one] for one in expected]
    again.save(tmp_path / "saved")
    assert answers(command, tmp_path / "saved", tiny, paths) == expected
    with one_line("need the models of its folds"):
        replace(said, of_folds=torch.empty(0)).sets(0.8)


def test_sets_of_a_bank_are_those_of_its_images(fitted, photos, paths, tiny, command, tmp_path):
    parquet_library()
    command.works(embed, "--backbone", tiny, *paths, "--to", tmp_path / "bank")
    expected = answers(command, fitted, tiny, paths)
    found = loaded(fitted, tiny).predict(paths)
    of_bank = Bank(tmp_path / "bank").predictions(loaded(fitted, tiny))
    # A bank has features in half precision
    torch.testing.assert_close(of_bank.of_folds, found.of_folds, rtol=0.01, atol=20)
    of_images = answers(command, fitted, tiny, [tmp_path / "bank"])
    assert [names for names, _ in of_images[0]] == [names for names, _ in expected[0]]


def made(heads, x, y, scenes):
    """A classifier with cross-conformal sets, and the fold of each image."""
    request = FitRequest("images", "model", minutes=0.0)
    candidates = [one for one in CANDIDATES if one.method in (ZERO_SHOT, "GDA", "SSText")]
    backbone = Backbone("", heads, Examples(x, y, scenes, heads.names), candidates)
    decision = decide_among([backbone], request, Plan(end=0.0))[1]
    classifier = heads.classifier(decision.chosen, (x, y), {})
    certain = decision.certainty
    names = tuple(heads.names)
    classifier.calibration = Calibration(names, len(y), "", "", certain.temperature, certain.sets)
    add_cross_sets(classifier, backbone, decision.trials, request)
    return classifier, decision.trials.folds[0]


@pytest.mark.parametrize("images_of_scene", thorough_but([3], [1, 3]))
def test_the_model_of_a_fold_is_chosen_and_learned_without_it(images_of_scene, tiny):
    heads = Heads(PromptedClassifier.zero_shot(str(tiny), ["red", "green"]))
    rng = np.random.default_rng(0)
    y = torch.arange(30) % 2
    scenes = np.arange(30) // (2 * images_of_scene) * 2 + y.numpy()
    x = torch.from_numpy(rng.normal(size=(30, WIDTH))).float()
    x[:, 0] += 2.0 * y
    rows = CachedOutput(torch.from_numpy(rng.normal(size=(5, WIDTH))).float())
    classifier, folds = made(heads, x, y, scenes)
    before = classifier.logits_with_folds(rows)
    other_x = x.clone()
    other_x[folds == 1] = torch.randn(int((folds == 1).sum()), WIDTH)
    other, same_folds = made(heads, other_x, y, scenes)
    assert (folds == same_folds).all()
    differs = (other.logits_with_folds(rows) != before).flatten(2).any(dim=2).any(dim=0)
    assert differs.tolist() == [place != 2 for place in range(len(differs))]  # 0: of all images
    sets = classifier.calibration.sets
    assert len(sets.label_scores) == len(np.unique(scenes)) == 30 // images_of_scene
    # Scores are those of the models for the first image of each scene
    first = np.unique(scenes, return_index=True)[1]
    logits = classifier.logits_with_folds(CachedOutput(x[first]))[:, 1:].double()
    scores = -logits.log_softmax(dim=-1)[np.arange(len(first)), folds[first], y[first]]
    assert sorted(scores.tolist()) == pytest.approx(sets.label_scores, rel=1e-6, abs=1e-6)


def copy_of_fold_0(folds):
    shutil.copytree(folds / "0", folds / "1", dirs_exist_ok=True)


DAMAGES = [
    (lambda folds: shutil.rmtree(folds / "3"), "restore folds/, or fit again"),
    (lambda folds: (folds / "3/config.json").write_text("{}"), "folds/3"),
    (copy_of_fold_0, "not the model"),
    (lambda folds: (folds / "3/prompts.safetensors").write_bytes(b""), "damaged"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_damaged_folds_are_one_line(damage, words, fitted, paths, tiny, command, tmp_path):
    folder = shutil.copytree(fitted, tmp_path / "model")
    damage(folder / "folds")
    asked = [folder, *paths, "--backbone", tiny]
    assert words in command(predict, *asked, "--sets", "0.8").error


def test_a_calibration_cannot_ask_for_thousands_of_models(fitted):
    content = json.loads((fitted / "calibration.json").read_text())
    del content["content_sha256"]
    Calibration.from_json(content)
    with pytest.raises(ValueError, match="more than 10 folds"):
        Calibration.from_json(content | {"folds_sha256": ["0" * 64] * 11})


@pytest.mark.parametrize(
    "options", [["--minutes", "1"], ["--prior", "equal"], ["--backbone", "small", "RN50"]]
)
def test_what_the_guarantee_is_not_about_is_one_line(options, photos, fitting, tmp_path):
    done = fitting(photos, "--sets", "cross", *options)
    assert "--sets cross is for heads" in done.error
    assert not (tmp_path / "model").exists()


def test_images_that_were_chosen_are_refused_and_drawn_ones_are_not():
    request = FitRequest("images", "model", minutes=0.0, sets="cross")
    photos = [Photo(name, "red", asked="random") for name in ("a.jpg", "b.jpg")]
    check_cross(request, photos)
    with one_line("--sets cross is for heads"):
        check_cross(request, [Photo("a.jpg", "red", asked="chosen")])


def test_one_image_of_each_class_has_no_cross_sets():
    """The fit ended without sets, after all its work."""
    request = FitRequest("images", "model", minutes=0.0, sets="cross")
    photos = [Photo(f"{label}.jpg", label) for label in ("red", "blue")]
    tested = [Photo(f"{number}.jpg", "red", part="test") for number in range(3)]
    with one_line("no class has two: give two or more images of each class, or leave it out"):
        check_cross(request, photos + tested)
    check_cross(replace(request, sets="pooled"), photos)


@pytest.mark.parametrize("name", ["sets", "prior", "coverage_by", "groups"])
def test_a_misspelt_option_is_one_line(name, paths):
    """Its default was taken: no guarantee, and nothing said so."""
    labels = [path.split("/")[-2] for path in paths]
    with one_line(f"value of {name} 'Cross'"):
        Classifier(minutes=0, **{name: "Cross"}).fit(paths, labels)


def test_one_model_after_another(photos, paths, tiny, fitting, tmp_path):
    """Sets of another kind replace those of an earlier fit, and more images are fitted again."""
    line = photos, "--methods", "GDA"
    cross = *line, "--sets", "cross", "--coverage-by", "class"
    fitting.works(*cross)
    assert calibration_in(tmp_path / "model").sets.folds
    shutil.rmtree(tmp_path / "model/folds/1")
    fitting.works(*cross)
    assert (tmp_path / "model/folds/1/config.json").is_file()
    assert "Already done" in fitting(*cross).printed
    fitting.works(*line)
    assert not (tmp_path / "model/folds").exists()
    assert calibration_in(tmp_path / "model").sets.folds == ()
    options = {"backbone": str(tiny), "minutes": 0, "methods": ("GDA",)}
    model = Classifier(**options, sets="cross")
    labels = [path.split("/")[-2] for path in paths]
    model.fit(paths, labels).partial_fit(paths[:1], labels[:1])
    assert model.update_ == FITTED_AGAIN
    model.save(tmp_path / "saved")
    restored = Classifier.load(tmp_path / "saved", **options)
    restored.partial_fit(paths[1:2], labels[1:2])
    assert restored.update_ == FITTED_AGAIN
    with one_line("sets='cross' needs images"):
        Classifier(backbone=None, sets="cross").fit(np.eye(4), [0, 0, 1, 1])
