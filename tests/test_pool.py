"""tools/fit.py --pool: images without labels improve the classifier, or are not used."""

import shutil
from itertools import chain

import numpy as np
import pytest
import torch
from marks import of_json, one_line

from fit.candidates import CANDIDATES, POOLED, VISION, ZERO_SHOT, Candidate, ensemble
from fit.decision import decide
from fit.estimator import FITTED_AGAIN, Classifier
from fit.heads import Heads
from fit.options import Option, choose_with_pool
from fit.pooled import Neighbourhood, unexplained
from fit.request import FitRequest
from fit.trials import Examples
from inference import embed
from inference.artefact import EXPORT_CONFIG_FILE
from inference.classifier import PromptedClassifier
from inference.sample import Sample
from inference.seen import SeenImages
from runs import calibrate_command as calibrate
from trainers.base.features import CachedOutput

WIDTH = 64  # of the tiny CLIP's features before the projection


def arcs(images, seed):
    """Features and labels of two classes, each of which is half of a ring beside the other."""
    chance = np.random.default_rng(seed)
    labels = np.arange(images) % 2
    angle = np.pi * chance.random(images)
    x = np.where(labels, 1 - np.cos(angle), np.cos(angle))
    y = np.where(labels, 0.4 - np.sin(angle), np.sin(angle))
    rows = np.zeros((images, WIDTH))
    rows[:, 0] = 3
    rows[:, 1] = x
    rows[:, 2] = y
    rows += 0.02 * chance.normal(size=rows.shape)
    return torch.from_numpy(rows).float(), torch.from_numpy(labels)


@pytest.fixture
def heads(tiny):
    return Heads(PromptedClassifier.zero_shot(str(tiny), ["red", "green"]))


def decided(heads, x, y):
    examples = Examples(x, y, np.arange(len(y)), heads.names)
    candidates = [CANDIDATES[0], *(one for one in (*CANDIDATES, *POOLED) if one.method == VISION)]
    candidates = [one for one in candidates if heads.pool is not None or not one.pool]
    return decide(heads, examples, candidates, FitRequest("images", "model"))


def test_labels_go_on_over_the_images_without_labels(heads):
    x, y = arcs(20, 1)
    heads.pool, truth = arcs(400, 2)
    found = Neighbourhood(heads.pool).labels(x, y, 2)
    assert (found == truth).float().mean() > 0.95
    alone = Candidate(VISION, {"RIDGE": 0.1})
    assert (heads.answers(alone, (x, y), heads.pool).argmax(dim=1) == truth).float().mean() < 0.9


def test_the_pool_is_chosen_where_it_helps(heads):
    x, y = arcs(40, 1)
    assert not any(candidate.pool for candidate, _ in decided(heads, x, y).chosen)
    heads.pool = arcs(400, 2)[0]
    assert any(candidate.pool for candidate, _ in decided(heads, x, y).chosen)


@pytest.mark.parametrize("better", [False, True])
def test_a_candidate_of_the_pool_must_be_clearly_better(better):
    chance = np.random.default_rng(0)
    labels = np.arange(60) % 2
    truth = np.where(np.arange(2) == labels[:, None], 1.0, -1.0)
    noise = chance.normal(size=(60, 2))
    logits = np.stack([truth + 4 * chance.normal(size=(60, 2)), truth + noise, truth + noise])
    logits[2] = 3 * truth if better else truth + 6 * chance.normal(size=(60, 2))
    pooled = np.array([False, False, True])
    names = [ZERO_SHOT, VISION, VISION]
    candidates = [
        Candidate(name, pool="x" * int(of)) for name, of in zip(names, pooled, strict=True)
    ]
    option = Option(
        logits[:, None],
        lambda inside: ensemble(candidates, 1.0),
        pooled,
        lambda inside: ensemble(candidates, 1.0, True),
    )
    everything = np.ones(60, dtype=bool)
    weights = choose_with_pool(option, Sample.of(labels), everything)
    assert bool(weights[2]) is better and weights.any()


def test_candidates_of_the_pool_are_exported(heads, tmp_path):
    x, y = arcs(12, 1)
    heads.pool = arcs(100, 2)[0]
    for group in (POOLED[:1], POOLED[2:3], POOLED[:2], (CANDIDATES[0], *POOLED)):
        weights = [(one, 1.0 + place) for place, one in enumerate(group)]
        expected = sum(weight * heads.answers(one, (x, y), x) for one, weight in weights)
        classifier = heads.classifier(weights, (x, y), {})
        inputs = heads.inputs(classifier.method, x)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        classifier.save(folder)
        loaded = PromptedClassifier.from_pretrained(folder, heads.zero_shot.description.backbone)
        with torch.no_grad():
            found = loaded.model_for()(CachedOutput(inputs))
        tolerance = 1e-3 * float(expected.abs().max())
        np.testing.assert_allclose(found, expected.detach(), atol=tolerance)


def test_a_class_that_nobody_has_labelled_is_a_cluster():
    chance = torch.Generator().manual_seed(0)
    centres = 4 * torch.randn(4, WIDTH, generator=chance)
    truth = torch.arange(200) % 4
    known = Neighbourhood(centres[truth] + torch.randn(200, WIDTH, generator=chance))
    labels = torch.arange(32) % 4
    rows = known.whitened(centres[labels] + torch.randn(32, WIDTH, generator=chance))
    images = known.images.numpy()
    found = [*chain(*unexplained(rows[labels != 3].numpy(), images, 3, 1))]
    assert set(truth[found].tolist()) == {3} and len(found) > 20
    assert not [*unexplained(rows.numpy(), images, 4, 1)]
    few = rows[:3].numpy()  # of which a cluster may have none by chance
    assert not [*unexplained(few, images, 3, 1)]


@pytest.fixture
def folders(eurosat, tmp_path):
    """Class folders with 4 images each, and a pool: 4 others of each class, copies of labelled
    images, and a text file.
    """
    pool = tmp_path / "pool"
    pool.mkdir()
    for folder in sorted((eurosat / "eurosat/2750").iterdir()):
        files = sorted(folder.iterdir())[:8]
        (tmp_path / "photos" / folder.name).mkdir(parents=True)
        for file in files[:4]:
            shutil.copy(file, tmp_path / "photos" / folder.name)
        for file in files[4:]:
            shutil.copy(file, pool / f"{folder.name}-{file.name}")
        shutil.copy(files[0], pool / f"{folder.name}-copy.png")
    (pool / "broken.png").write_text("no image")
    return tmp_path / "photos", pool


def test_a_fit_says_what_it_saw_without_labels(fitting, folders, tmp_path):
    photos, pool = folders
    line = photos, "--methods", VISION, "--pool", pool
    done = fitting.works(*line)
    classes = len(list(photos.iterdir()))
    images = 4 * classes
    assert f"Left out of the images without labels: {classes} that are copies" in done.printed
    assert "broken.png" in done.printed and f"{images} images without labels" in done.printed
    record = of_json(tmp_path / "model/fit.json")
    assert record["pool"]["images"] == images
    assert any("with propagated labels" in row["name"] for row in record["candidates"])
    assert SeenImages.read(tmp_path / "model").of_role("unlabelled").digest.shape[0] == images
    exported = of_json(tmp_path / "model" / EXPORT_CONFIG_FILE)
    assert exported["training"]["images_seen_without_labels"] == images
    assert "Already done" in fitting(*line).printed
    none = fitting(*line, "--classes", "pink", to="other")
    assert "no candidate that learns from them could be tried" in none.printed
    (pool / "broken.png").unlink()
    assert "Already done" not in fitting(*line).printed


def test_a_bank_that_does_not_know_near_copies_says_so(command, fitting, folders, tiny, tmp_path):
    photos, pool = folders
    command(embed, pool, "--to", tmp_path / "bank", "--backbone", tiny)
    printed = fitting(photos, "--methods", VISION, "--pool", tmp_path / "bank").printed
    assert "Near-copies are not known: the bank was written without --look" in printed


def test_a_classifier_has_the_same_pool(fitting, folders, tiny, tmp_path):
    photos, pool = folders
    fitting.works(photos, "--methods", VISION, "--pool", pool)
    model = Classifier(str(tiny), minutes=0, methods=[VISION], pool=str(pool)).fit(photos)
    model.save(tmp_path / "saved")
    kept = "request", "pool", "estimate", "names", "notes"
    of_command, of_class = (of_json(tmp_path / name / "fit.json") for name in ("model", "saved"))
    assert {key: of_command[key] for key in kept} == {key: of_class[key] for key in kept}
    images = of_class["pool"]["images"]
    asked = next(pool.glob("*-t*"))
    model.partial_fit([asked], [of_class["names"][0]])
    model.save(tmp_path / "more")
    assert model.update_ == FITTED_AGAIN
    record = of_json(tmp_path / "more/fit.json")
    assert record["pool"]["images"] == images - 1
    with one_line("need images, and backbone is None"):
        Classifier(None, pool=str(pool)).fit(np.eye(4), [0, 0, 1, 1])
    with one_line("there is no folder, list or bank"):
        Classifier(str(tiny), minutes=0, pool=tmp_path / "nothing").fit(photos)


def test_clusters_are_shown(fitting, folders, tmp_path, monkeypatch):
    """With a class that has no labelled image, and whose images are alike."""
    photos, pool = folders
    *_, last = sorted(folder.name for folder in photos.iterdir())
    shutil.rmtree(photos / last)
    monkeypatch.setattr("fit.pooled.LEAST_OF_CLUSTER", 3)
    monkeypatch.setattr("fit.pooled.CLUSTERS", 1)
    done = fitting(photos, "--methods", VISION, "--pool", pool, "--groups", "none")
    assert "A new class? See report.html" in done.printed, done.printed
    (paths,) = of_json(tmp_path / "model/fit.json")["pool"]["clusters"]
    assert len(paths) >= 3 and all(f"/{last}-" in path for path in paths)
    page = (tmp_path / "model/report.html").read_text()
    assert "In no class?" in page and paths[0] in page


def test_a_calibration_knows_images_that_were_seen_without_labels(
    command, fitting, folders, tiny, tmp_path
):
    photos, pool = folders
    fitting.works(photos, "--methods", VISION, "--pool", pool)
    images = tmp_path / "labelled"
    for name in (folder.name for folder in photos.iterdir()):
        (images / name).mkdir(parents=True)
        for file in pool.glob(f"{name}-t*"):
            shutil.copy(file, images / name)
    done = command(calibrate, tmp_path / "model", "--images", images, "--backbone", tiny)
    assert "were seen by the model without their labels" in done.printed, done.error
    assert len(SeenImages.read(tmp_path / "model").of_role("unlabelled"))


def test_bad_pools_are_one_line(fitting, folders, tmp_path):
    photos, pool = folders
    few = tmp_path / "few"
    few.mkdir()
    shutil.copy(next(pool.glob("*-t*")), few)
    faults = {
        "there is no folder": ["--pool", tmp_path / "nothing"],
        "is a tar": ["--pool", tmp_path / "pool.tar"],
        "--pool has 1 images": ["--pool", few],
        "learns from images without labels": ["--methods", "TransCLIP"],
    }
    for fault, words in faults.items():
        assert fault in fitting(photos, *words).error
        assert not (tmp_path / "model/fit.json").exists()
