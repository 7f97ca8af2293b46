"""The corruptions of ImageNet-C on the images of a test."""

from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from dassl.engine import build_trainer
from drawn import arguments, make_cfg
from finished import finish, phase
from marks import of_json, one_line, thorough_but
from PIL import Image

from studies.progress import collect_results
from studies.spec import Study
from studies.tables import Summary
from studies.variant import Variant
from trainers.base import corruptions
from trainers.base.corruptions import CORRUPTIONS, OWN_SEED, Corrupted

installed = pytest.mark.skipif(
    not find_spec("imagecorruptions"), reason="requirements-corruptions.txt is not installed"
)
RANDOM = {*OWN_SEED, "gaussian_noise", "shot_noise", "motion_blur", "snow", "frost", "fog"}
RANDOM.add("elastic_transform")


def as_tensor(image):
    return torch.from_numpy(np.array(image))


@installed
@pytest.mark.parametrize("size", thorough_but([(48, 32)], [(64, 64), (96, 64), (48, 32)]))
def test_a_corruption_depends_on_the_image_and_the_seed_alone(size):
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 200, size[0] * size[1]).reshape(*size, 1)
    pixels = (ramp + rng.integers(0, 55, (*size, 3))).astype(np.uint8)
    image = Image.fromarray(pixels)
    for name in CORRUPTIONS:
        changes = []
        for severity in range(1, 6):
            corrupt = Corrupted(lambda each: each, name, severity, 1, as_tensor)
            before = np.random.get_state()[1].copy()
            found = corrupt(image)
            corrupt(image.rotate(180))
            assert torch.equal(corrupt(image), found), name
            assert np.array_equal(np.random.get_state()[1], before)
            other = Corrupted(lambda each: each, name, severity, 2, as_tensor)(image)
            assert torch.equal(other, found) == (name not in RANDOM), name
            assert found.shape == (*size, 3) and found.dtype == torch.uint8
            changes.append(float((found.float() - as_tensor(image)).abs().mean()))
        assert min(changes) > 0.5, name
        assert changes[-1] > changes[0] or name in ("frost", "glass_blur"), (name, changes)


@pytest.fixture
def package(monkeypatch):
    monkeypatch.setattr(corruptions, "distribution", lambda name: name)


@pytest.mark.parametrize("method", ["ZeroshotCLIP", "TPS", "StatA", "TipAdapter"])
def test_only_the_images_of_a_test_have_it(method, package, eurosat, tiny, tmp_path):
    pairs = "TEST.CORRUPTION", "fog", "TEST.SEVERITY", 3, "OPTIM.MAX_EPOCH", 1
    trainer = build_trainer(make_cfg(method, eurosat, tiny, tmp_path / "run", *pairs))
    transform = trainer.test_loader.dataset.transform
    assert (transform.corruption, transform.severity) == ("fog", 3)
    others = [trainer.dm.test_loader, trainer.dm.train_loader_x, trainer.val_loader]
    others.append(trainer.method.images.tests)
    assert "Corrupted" not in str([loader.dataset.transform for loader in others])
    plain = build_trainer(make_cfg(method, eurosat, tiny, tmp_path / "plain", *pairs[-2:]))
    whole = plain.test_loader.dataset.transform
    image = Image.open(trainer.test_loader.dataset.data_source[0].impath).convert("RGB")
    assert torch.equal(transform.after(transform.centre(image)), whole(transform.centre(image)))


@installed
@pytest.mark.slow
@pytest.mark.parametrize("method", thorough_but(["TDA"], ["ZeroshotCLIP", "TDA", "StatA"]))
def test_a_run_is_repeated_to_the_last_digit(method, launch, eurosat, tiny, tmp_path):
    found = []
    for workers, cache in ((0, ""), (2, str(tmp_path / "cache")), (0, str(tmp_path / "cache"))):
        folder = tmp_path / f"run{len(found)}"
        pairs = ["TEST.CORRUPTION", "glass_blur", "DATALOADER.NUM_WORKERS", workers]
        pairs += ["CACHE", cache, "TEST.SAVE_LOGITS", True]
        run = arguments(eurosat, tiny, folder, *pairs, trainer=method, config="small")
        launch.works(*run)
        results = of_json(folder / "results.json")
        assert results["corruption"] == "glass_blur 5"
        with np.load(folder / "predictions.npz") as arrays:
            found.append(arrays["logits"])
    pairs = "CACHE", str(tmp_path / "cache"), "TEST.SAVE_LOGITS", True
    plain = arguments(eurosat, tiny, tmp_path / "plain", *pairs, trainer=method, config="small")
    launch.works(*plain)
    assert "corruption" not in of_json(tmp_path / "plain/results.json")
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])
    with np.load(tmp_path / "plain/predictions.npz") as arrays:
        assert not np.allclose(arrays["logits"], found[0])


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ((), ("imagecorruptions-imaug is not installed", "requirements-corruptions.txt")),
        (("TEST.OOD", ["eurosat"]), ("the images of --ood have none: leave one of them out",)),
        (("INPUT.SIZE", (16, 16)), ("INPUT.SIZE is (16, 16): give at least 32 pixels",)),
    ],
)
def test_refused(pairs, words, monkeypatch, eurosat, tiny, tmp_path):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(corruptions, "distribution", missing)
    cfg = make_cfg("CoOp", eurosat, tiny, tmp_path, "TEST.CORRUPTION", "fog", *pairs)
    with one_line("TEST.CORRUPTION is fog", *words):
        corruptions.check(cfg, True)
    if not pairs:
        with one_line("is not a method: leave it out"):
            corruptions.check(cfg, False)


def test_corrupted_and_other_images_are_never_mixed(tmp_path):
    fog = Variant("CoOp fog", "CoOp", "small", overrides=("TEST.CORRUPTION", "fog"))
    assert fog.kind == "inductive, fog 5"
    variants = Variant("CoOp", "CoOp", "small"), Variant("MPL", "MPL", "small"), fog
    study = Study(variants, ("small_land",), ("few_shot",), (1, 2, 3), output=tmp_path)
    for run in study.runs():
        corruption = {"corruption": "fog 5"} if run.variant == fog else {}
        test = phase(sha256=64 * "a", evaluations=1)
        finish(run, 50.0 + run.seed, data_use={"test": test}, **corruption)
    summary = Summary(study, collect_results(study))
    assert "fog" not in str(summary.tests["against"].tolist())
    assert any("were tested on different images" in note for note in summary.warnings)
    of_fog = summary.cells[summary.cells["method"] == fog.name]
    assert of_fog["rank"].isna().all()
