"""Detection of images that show none of the classes: scores equal to published code, for every
method.
"""

import numpy as np
import pytest
import torch
from drawn import arguments, results, write_eurosat
from harness import agree
from marks import of_json, to_json
from sklearn.metrics import average_precision_score, roc_auc_score
from trees import build_tree

import trainers
from runs import ood
from trainers.base.prompted import local_logits

pytestmark = pytest.mark.slow


def logits_and_patches(trainer, images):
    """As `ood.DetectionObserver` reads them."""
    with trainer.model.reading("local"):
        logits = trainer.model_inference(images)
        return logits, local_logits(trainer.model, trainer.model.last_output).detach()


def test_other_scores_by_numpy():
    logits = np.random.default_rng(3).normal(0, 8, (20, 6))
    logits[:5, 3] = -np.inf  # which leaves out a class
    for t in (1.0, 2.5):
        found = ood.scores(torch.from_numpy(logits), None, t)
        p = np.exp(logits / t) / np.exp(logits / t).sum(axis=1, keepdims=True)
        assert found["MaxLogit"].numpy() == pytest.approx(logits.max(axis=1))
        assert found["Energy"].numpy() == pytest.approx(t * np.log(np.exp(logits / t).sum(axis=1)))
        assert found["Entropy"].numpy() == pytest.approx(
            (p * np.log(np.maximum(p, 1e-300))).sum(axis=1)
        )
        assert "GL-MCM" not in found


def test_mcm_is_a_softmax_of_cosines_whatever_the_scale_of_the_backbone():
    cosines = torch.from_numpy(np.random.default_rng(4).uniform(-1, 1, (20, 6)))
    patches = torch.from_numpy(np.random.default_rng(5).uniform(-1, 1, (20, 9, 6)))
    expected = ood.scores(100 * cosines, 100 * patches, scale=100)
    found = ood.scores(29.4 * cosines, 29.4 * patches, scale=29.4)
    for score in ("MCM", "GL-MCM"):
        assert torch.allclose(found[score], expected[score])


@pytest.mark.parametrize("method", ["CoCoOp", "MMRL", "DePT+MaPLe", "CLIPLoRA", "VPT"])
def test_patches_of_an_image_do_not_depend_on_the_others(method, build):
    trainer = build(method)
    trainer.set_model_mode("eval")

    def patches(images):
        return logits_and_patches(trainer, images)[1]

    images = torch.randn(3, 3, 32, 32)
    together = patches(images)
    assert together.shape == (3, 4, 6)
    agree(together, torch.cat([patches(image[None]) for image in images]), abs=1e-3)


# Runs


BASE = ("DATASET.SUBSAMPLE_CLASSES", "base")


@pytest.fixture
def detect(run):
    """`detect(name, other, KEY, VALUE, ...)` tests zero-shot CLIP with --ood, and returns its
    folder and result.
    """

    def detect(name, other, *overrides, trainer="ZeroshotCLIP", options=(), **how):
        folder = run(name, *overrides, trainer=trainer, options=["--ood", other, *options], **how)
        (found,) = results(folder)["ood"]
        return folder, found

    return detect


@pytest.mark.parametrize("split", ["test", "val"])
def test_near_ood_by_the_new_classes(split, run, detect, eurosat):
    base = (*BASE, "TEST.SPLIT", split)
    folder, found = detect("out", "new", *base, "TEST.SAVE_LOGITS", True)
    assert (found["name"], found["classes"], found["images"], found["shared_classes"]) == (
        "new",
        "new",
        12,
        [],
    )
    assert list(found["scores"]) == list(ood.SCORES)
    assert f"AUROC {found['scores']['MCM']['auroc']:.2f}" in (folder / "log.txt").read_text()
    without = results(run("without", *base, trainer="ZeroshotCLIP"))
    assert results(folder)["accuracy"] == without["accuracy"] and "ood" not in without
    # Zero-shot CLIP's logits of all classes are those of each class alone: the first three columns
    # are the base's.
    known = np.load(folder / "predictions.npz")["logits"]
    everything = np.load(
        run("all", "TEST.SAVE_LOGITS", True, trainer="ZeroshotCLIP") / "predictions.npz"
    )
    unknown = everything["logits"][everything["label"] >= 3][:, :3]
    positive = [1] * len(known) + [0] * len(unknown)
    scores = np.concatenate([known.max(axis=1), unknown.max(axis=1)])
    assert found["scores"]["MaxLogit"]["auroc"] == pytest.approx(
        100 * roc_auc_score(positive, scores), abs=1e-6
    )
    aupr = average_precision_score(positive, scores)
    assert found["scores"]["MaxLogit"]["aupr"] == pytest.approx(100 * aupr, abs=1e-6)


def test_a_training_run_and_its_evaluation_find_the_same(detect):
    folder, trained = detect("out", "new", *BASE, trainer="MPL")
    evaluation = {"trainer": "MPL", "options": ["--eval-only", "--model-dir", folder]}
    assert detect("tested", "new", *BASE, **evaluation)[1] == trained


def test_another_dataset_and_shared_classes_are_printed(detect, tmp_path):
    build_tree("dtd", tmp_path / "data")
    write_eurosat(tmp_path / "data", ["Banded", "red", "dotted"], test=3)
    split = tmp_path / "data/dtd/split_zhou_DescribableTextures.json"
    content = of_json(split)
    content["train"] = list(
        {label: [path, label, name] for path, label, name in content["train"]}.values()
    )
    # One training image of each class: the others hold none out
    to_json(split, content)
    folder, found = detect("out", "dtd", "DATASET.HOLD_OUT", True, root=tmp_path / "data")
    assert found["dataset"] == "DescribableTextures" and found["images"] > 3
    shared = [name for name in found["shared_classes"] if name.lower() in ("banded", "dotted")]
    assert shared == found["shared_classes"] != []
    line = f"DescribableTextures shares {len(shared)} classes with EuroSAT"
    assert line in (folder / "log.txt").read_text()


@pytest.mark.parametrize(
    ("scores", "words"),
    [("GL-MCM", "leave it out of TEST.OOD_SCORES"), ("MCM", "--ood scores each image alone")],
)
def test_towers_without_texts_and_transductive_methods_are_refused(
    scores, words, refused, eurosat, tiny, tmp_path, monkeypatch
):
    monkeypatch.setattr(ood, "has_local_features", lambda clip: False)
    if scores == "MCM":
        monkeypatch.setattr(trainers.methods()["ZeroshotCLIP"], "kind", "transductive")
    pairs = (*BASE, "TEST.OOD_SCORES", f"['{scores}']")
    how = {"trainer": "ZeroshotCLIP", "options": ["--ood", "new"]}
    refused(arguments(eurosat, tiny, tmp_path / "out", *pairs, **how), words)
