"""Detection of images that show none of the classes: scores equal to published code, for every method."""

import json

import numpy as np
import pytest
import torch
from drawn import arguments, write_eurosat
from marks import thorough_but
from sklearn.metrics import average_precision_score, roc_auc_score
from test_golden import AFTER, BEFORE, build, close, images_of
from trees import build_tree

import trainers
from common.start import ROOT
from experiments import ood
from experiments.predictions import read
from experiments.results import FILE
from trainers.base.local import has_local_logits

pytestmark = pytest.mark.slow


def pytest_generate_tests(metafunc):
    if "figures" in metafunc.fixturenames:
        files = sorted(metafunc.config.getoption("golden").glob("locoop*.json"))
        metafunc.parametrize("figures", [json.loads(file.read_text()) for file in files], ids=lambda case: "")


def same_scores(logits, of_patches, expected, tolerance=2e-6):
    for each in expected:
        got = ood.scores(torch.as_tensor(logits), torch.as_tensor(of_patches), each["T"])
        for score in ("MCM", "GL-MCM"):
            close(got[score], each[score], tolerance)


def test_scores_of_published_logits(figures):
    for when in ("before", "after"):
        logits, of_patches = figures[f"logits_{when}"], figures[f"logits_local_{when}"]
        same_scores(logits, of_patches, figures[f"scores_{when}"])
        if np.shape(of_patches)[-1] > 2:  # the score reads all patches
            fewer = ood.scores(torch.tensor(logits), torch.tensor(of_patches)[:, :1])["GL-MCM"]
            assert (fewer < ood.scores(torch.tensor(logits), torch.tensor(of_patches))["GL-MCM"] - 1e-4).any()


@pytest.mark.parametrize("towers", thorough_but(("fast",), ("fast", "plain")))
def test_patches_and_scores_of_the_model(figures, towers, backbones, tmp_path):
    case = figures["case"]
    settings = case["trainer"], towers, case["cfg"], case["arch"], case["classnames"], figures["optimizer"]
    trainer = build(*settings, backbones, tmp_path)
    images = images_of(case["batch"], case["arch"]["image_resolution"])
    batch = {"img": images, "label": torch.tensor(figures["labels"])}

    def check(when, tolerance):
        trainer.set_model_mode("eval")
        logits, of_patches = next(ood.outputs(trainer, [batch], True))
        close(logits, figures[f"logits_{when}"], tolerance)
        close(of_patches, figures[f"logits_local_{when}"], 2 * tolerance)
        same_scores(logits, of_patches, figures[f"scores_{when}"], tolerance)
        assert trainer.model.read == ("local",)
        trainer.set_model_mode("train")

    check("before", BEFORE)
    for _ in figures["losses"]:
        trainer.forward_backward(batch)
    check("after", AFTER)


def test_other_scores_by_numpy():
    logits = np.random.default_rng(3).normal(0, 8, (20, 6))
    for t in (1.0, 2.5):
        found = ood.scores(torch.from_numpy(logits), None, t)
        p = np.exp(logits / t) / np.exp(logits / t).sum(axis=1, keepdims=True)
        assert found["MaxLogit"].numpy() == pytest.approx(logits.max(axis=1))
        assert found["Energy"].numpy() == pytest.approx(t * np.log(np.exp(logits / t).sum(axis=1)))
        assert found["Entropy"].numpy() == pytest.approx((p * np.log(p)).sum(axis=1))
        assert "GL-MCM" not in found


@pytest.mark.parametrize("method", ["CoCoOp", "MMRL", "DePT+MaPLe", "CLIPLoRA", "VPT"])
def test_patches_of_a_method(method, build_trainer):
    """Those of one image, which does not depend on the others."""
    trainer = build_trainer(method)
    trainer.set_model_mode("eval")
    images = torch.randn(3, 3, 32, 32)
    together = patches(trainer, images)
    assert together.shape == (3, 4, 6)
    alone = torch.cat([patches(trainer, image[None]) for image in images])
    close(together, alone, 1e-3)
    text = trainer.model.output(images).text
    assert text.dim() == (3 if method == "CoCoOp" else 2)


def patches(trainer, images):
    return next(ood.outputs(trainer, [{"img": images, "label": torch.zeros(len(images))}], True))[1]


@pytest.fixture
def build_trainer(build):
    return lambda method: build(method)


# Runs


@pytest.fixture
def run(launch, eurosat, tiny, tmp_path):
    """`run(KEY, VALUE, ..., options=)` -> what zero-shot CLIP's run printed, its results and its folder."""

    def run(*overrides, options=(), trainer="ZeroshotCLIP", root=eurosat, name="out"):
        ended = launch(*arguments(root, tiny, tmp_path / name, *overrides, trainer=trainer, options=options))
        assert ended.status == 0, ended.errors
        return ended.printed, json.loads((tmp_path / name / FILE).read_text()), tmp_path / name

    return run


@pytest.mark.parametrize("split", ["test", "val"])
def test_near_ood_by_the_new_classes(split, run, eurosat):
    base = ("DATASET.SUBSAMPLE_CLASSES", "base", "TEST.SPLIT", split)
    printed, results, folder = run(*base, "TEST.SAVE_LOGITS", True, options=["--ood", "new"])
    (found,) = results["ood"]
    assert (found["name"], found["classes"], found["images"], found["shared_classes"]) == ("new", "new", 12, [])
    assert list(found["scores"]) == list(ood.SCORES)
    assert f"AUROC {found['scores']['MCM']['auroc']:.2f}" in printed
    assert results["accuracy"] == run(*base, name="without")[1]["accuracy"]
    # The new images under the base classes' texts, by another way: an evaluation whose logits are kept.
    known = np.load(folder / "predictions.npz")["logits"]
    labels = [label for _, label, _ in json.loads((eurosat / "eurosat/split_zhou_EuroSAT.json").read_text())["test"]]
    unknown = logits_of_new_images(run, folder, labels)
    positive = [1] * len(known) + [0] * len(unknown)
    scores = np.concatenate([known.max(axis=1), unknown.max(axis=1)])
    assert found["scores"]["MaxLogit"]["auroc"] == pytest.approx(100 * roc_auc_score(positive, scores), abs=1e-6)
    aupr = average_precision_score(positive, scores)
    assert found["scores"]["MaxLogit"]["aupr"] == pytest.approx(100 * aupr, abs=1e-6)


def logits_of_new_images(run, folder, labels):
    """Zero-shot CLIP's logits of all classes are those of each class alone: the first three columns are the base's."""
    everything = np.load(run("TEST.SAVE_LOGITS", True, name="all")[2] / "predictions.npz")
    base_names = read(folder)["class_names"].tolist()
    assert everything["class_names"].tolist()[:3] == base_names
    return everything["logits"][np.array(labels) >= 3][:, :3]


def test_a_training_run_and_its_evaluation_find_the_same(run):
    base = ("DATASET.SUBSAMPLE_CLASSES", "base")
    _, trained, folder = run(*base, trainer="MPL", options=["--ood", "new"])
    options = ["--eval-only", "--model-dir", folder, "--ood", "new"]
    assert run(*base, trainer="MPL", options=options, name="tested")[1]["ood"] == trained["ood"]


def test_another_dataset_and_shared_classes_are_printed(run, tiny, tmp_path):
    build_tree("dtd", tmp_path / "data")
    write_eurosat(tmp_path / "data", ["Banded", "red", "dotted"], test=3)
    printed, results, _ = run(root=tmp_path / "data", options=["--ood", "dtd"])
    (found,) = results["ood"]
    assert found["dataset"] == "DescribableTextures" and found["images"] > 3
    shared = [name for name in found["shared_classes"] if name.lower() in ("banded", "dotted")]
    assert shared == found["shared_classes"] != []
    assert f"DescribableTextures shares {len(shared)} classes with EuroSAT" in printed


def test_chosen_scores_and_temperature(run):
    choice = ("TEST.OOD_SCORES", "['Energy', 'MCM']")
    base = ("DATASET.SUBSAMPLE_CLASSES", "base")
    first = run(*base, *choice, options=["--ood", "new"])[1]["ood"][0]["scores"]
    assert set(first) == {"Energy", "MCM"}
    warm = run(*base, *choice, "TEST.OOD_T", 50.0, options=["--ood", "new"], name="warm")[1]["ood"][0]["scores"]
    assert warm["Energy"] != first["Energy"]


def test_resnets_have_patches_too(run, tmp_path):
    from clip.random_weights import random_clip

    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 64}
    torch.save(random_clip("RN50", vision, {"width": 64, "layers": 2}, 64).state_dict(), tmp_path / "rn.pt")
    base = ("DATASET.SUBSAMPLE_CLASSES", "base", "MODEL.BACKBONE.NAME", tmp_path / "rn.pt")
    _, results, _ = run(*base, options=["--ood", "new"])
    assert "GL-MCM" in results["ood"][0]["scores"]


def test_a_method_without_texts_has_no_patches(refused, eurosat, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(ood, "has_local_logits", lambda model: False)
    options = {"trainer": "ZeroshotCLIP", "options": ["--ood", "new"]}
    wanted = ("DATASET.SUBSAMPLE_CLASSES", "base", "TEST.OOD_SCORES", "['GL-MCM']")
    words = arguments(eurosat, tiny, tmp_path / "out", *wanted, **options)
    refused(words, "GL-MCM compares patches with texts", "leave it out of TEST.OOD_SCORES")


def test_a_test_time_method_is_refused(refused, eurosat, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(trainers.methods()["ZeroshotCLIP"], "kind", "test-time")
    options = {"trainer": "ZeroshotCLIP", "options": ["--ood", "dtd"]}
    refused(arguments(eurosat, tiny, tmp_path / "out", **options), "--ood scores one view of each image")


@pytest.mark.parametrize(
    ("overrides", "name", "words"),
    [
        ((), "new", "--ood new needs base classes, and DATASET.SUBSAMPLE_CLASSES is all: set it to base"),
        ((), "eurosat2", "did you mean eurosat"),
        ((), "dtd", "no folder"),
        (("TEST.OOD_SCORES", "['MSM']"), "dtd", "score"),
        (("TEST.OOD_T", 0), "dtd", "TEST.OOD_T is 0"),
    ],
)
def test_wrong_requests_are_refused_and_leave_nothing(overrides, name, words, refused, eurosat, tiny, tmp_path):
    options = ["--ood", name]
    refused(arguments(eurosat, tiny, tmp_path / "out", *overrides, trainer="ZeroshotCLIP", options=options), words)


def test_a_probe_has_no_texts_for_patches(build_trainer):
    probed = trainers.methods()["LinearProbe"].Model
    assert not has_local_logits(probed.__new__(probed))
    assert has_local_logits(build_trainer("CoOp").model)


def test_help_names_the_option(ended):
    from experiments.arguments import parse_arguments

    assert parse_arguments(["--ood", "dtd, new"]).ood == ["dtd", "new"]
    assert (ROOT / "configs/datasets/dtd.yaml").is_file()
