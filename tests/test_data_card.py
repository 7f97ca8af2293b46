"""The data-use card of results.json: which images a run has seen in which phase, and where its settings come from."""

import hashlib
import json

import numpy as np
import pytest
import torch
from drawn import arguments

import trainers
from common.errors import UsageError
from common.start import ROOT
from experiments.results import FILE
from trainers.base.data_use import METHOD_KINDS

pytestmark = pytest.mark.slow

LOCKED = "MultiModalPromptLearner"
BEST = ("TEST.FINAL_MODEL", "best_val")


def card(folder):
    return json.loads((folder / FILE).read_text())["data_use"]


@pytest.fixture
def run(launch, eurosat, tiny, tmp_path):
    """`run(name, KEY, VALUE, ..., root=, options=, trainer=)` -> the folder of a run."""

    def run(name, *overrides, root=eurosat, options=(), trainer="MPL"):
        ended = launch(*arguments(root, tiny, tmp_path / name, *overrides, options=options, trainer=trainer))
        assert ended.status == 0, ended.errors
        return tmp_path / name

    return run


def digest(root, part, names):
    """Of the images of a split of the synthetic EuroSAT, by the description of `list_digest`."""
    rows = json.loads((root / "eurosat/split_zhou_EuroSAT.json").read_text())[part]
    lines = [f"eurosat/2750/{path}\0{label}\0{name}\n" for path, label, name in rows if label < names]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def test_card_of_a_training_run(run, eurosat):
    found = card(run("out", "DATASET.SUBSAMPLE_CLASSES", "base", "DATASET.NUM_SHOTS", 2))
    of_images = {"dataset": "EuroSAT", "classes": "base", "class_names": 3}
    (fit,) = found["fit"]
    assert len(fit.pop("sha256")) == 64
    assert fit == of_images | {"split": "train", "images": 6, "labels": 6}
    test = of_images | {"split": "test", "images": 12, "labels": 12, "sha256": digest(eurosat, "test", 3)}
    assert found["test"] == test | {"evaluations": 1}
    origins = {key: origin for origin, keys in found["settings"].items() for key in keys}
    assert origins["DATASET.NUM_SHOTS"] == origins["SEED"] == origins["MODEL.BACKBONE.NAME"] == "command line"
    assert origins["OPTIM.LR"] == "MPL/vit_b4_c1_add2_rm1.yaml" and origins["DATASET.NAME"] == "datasets/eurosat.yaml"
    assert "OPTIM.MOMENTUM" not in origins  # a default
    everything = card(run("all", "DATASET.NUM_SHOTS", -1))["fit"][0]
    assert everything["images"] == 48 and everything["sha256"] == digest(eurosat, "train", 6)


def test_an_evaluation_says_what_its_prompts_were_learned_from(run):
    trained = run("trained", "DATASET.SUBSAMPLE_CLASSES", "base")
    tested = run("tested", "DATASET.SUBSAMPLE_CLASSES", "new", options=["--eval-only", "--model-dir", trained])
    assert card(tested)["fit"] == card(trained)["fit"]
    assert (card(tested)["test"]["classes"], card(tested)["test"]["evaluations"]) == ("new", 1)
    begun = run("begun", "MODEL.INIT_WEIGHTS", trained / LOCKED / "model.pth.tar-2")
    assert [fit["classes"] for fit in card(begun)["fit"]] == ["base", "all"]
    again = run("again", options=["--eval-only", "--model-dir", begun])
    assert card(again)["fit"] == card(begun)["fit"]
    zero = card(run("zero", trainer="ZeroshotCLIP"))
    assert zero["fit"] == zero["choose"] == []


def test_data_use_of_a_silent_checkpoint_is_not_guessed(run, launch, eurosat, tiny, tmp_path):
    trained = run("trained")
    file = trained / LOCKED / "model.pth.tar-2"
    checkpoint = torch.load(file, weights_only=True)
    fit = checkpoint["metadata"].pop("fit")
    torch.save(checkpoint, file)
    assert card(run("tested", options=["--eval-only", "--model-dir", trained]))["fit"] is None
    for damage in ({"images": -1}, {"labels": "2"}, {"dataset": "Euro\x1b[31mSAT"}, {"sha256": 3}):
        torch.save(checkpoint | {"metadata": checkpoint["metadata"] | {"fit": [fit[0] | damage]}}, file)
        ended = launch(*arguments(eurosat, tiny, tmp_path / "x", options=["--eval-only", "--model-dir", trained]))
        assert ended.status == 2 and "is not a checkpoint of a training run" in ended.errors[0]


def test_every_test_of_a_folder_is_counted(run, launch, eurosat, tiny, tmp_path):
    trained = run("trained")
    options = ["--eval-only", "--model-dir", trained]
    for number in (1, 2, 3):
        assert card(run("tested", options=options))["test"]["evaluations"] == number
    assert card(run("tested", "TEST.SPLIT", "val", options=options))["test"]["evaluations"] == 1  # of these images
    assert card(run("trained"))["test"]["evaluations"] == 2


def test_validation_on_test_images_counts_as_evaluations(on_imagenet):
    found = card(on_imagenet("out", *BEST, "TEST.SELECT_ON_TEST", True))
    assert (found["test"]["evaluations"], found["choose"][0]["trials"]) == (3, 2)  # two epochs, and the end
    assert found["choose"][0]["sha256"] == found["test"]["sha256"]


def test_a_resumed_run_counts_the_tests_before_it(on_imagenet, monkeypatch, tmp_path):
    mpl = trainers.methods()["MPL"]
    step = mpl.forward_backward

    def stops(self, batch):
        if self.epoch == 1:
            raise UsageError("cut off")
        return step(self, batch)

    monkeypatch.setattr(mpl, "forward_backward", stops)
    with pytest.raises(AssertionError, match="cut off"):
        on_imagenet("out", *BEST, "TEST.SELECT_ON_TEST", True)
    monkeypatch.setattr(mpl, "forward_backward", step)
    found = card(on_imagenet("out", *BEST, "TEST.SELECT_ON_TEST", True))
    through = card(on_imagenet("through", *BEST, "TEST.SELECT_ON_TEST", True))
    assert found == through and found["test"]["evaluations"] == 3


def test_best_val_on_validation_images_does_not_touch_test_images(run):
    found = card(run("out", *BEST))
    assert (found["test"]["evaluations"], found["choose"][0]["test_images"]) == (1, 0)
    assert found["choose"][0]["sha256"] != found["test"]["sha256"]


def test_every_method_says_its_kind():
    assert {method.kind for method in trainers.methods().values()} <= set(METHOD_KINDS)


def test_the_kind_of_a_method_is_on_the_card(run, monkeypatch):
    monkeypatch.setattr(trainers.methods()["MPL"], "kind", "test-time")
    assert card(run("out"))["kind"] == "test-time"


def test_a_chosen_setting_is_no_default(launch, eurosat, tiny, tmp_path):
    options = ["--trainer", "LinearProbe", "--config-file", ROOT / "configs/trainers/LinearProbe/small.yaml"]
    ended = launch(*arguments(eurosat, tiny, tmp_path / "out", "OPTIM.MAX_EPOCH", 1, options=options))
    assert ended.status == 0, ended.errors
    found = card(tmp_path / "out")
    assert found["settings"]["a choice"] == ["TRAINER.LINEARPROBE.C"]
    assert [(choice["what"], choice["trials"]) for choice in found["choose"]] == [("TRAINER.LINEARPROBE.C", 15)]


def test_search_tries_as_many_values_as_the_card_says():
    from trainers.linear_probe import TRIALS, search

    tried = set()
    search(lambda x: tried.add(x) or -abs(x - 1.3))
    assert len(tried) == TRIALS


def test_best_epoch_lists_its_training_images_once(run):
    best, last = card(run("best", *BEST)), card(run("last"))
    assert len(last["fit"]) == 1 and best["fit"] == last["fit"]
    held = card(run("held", *BEST, "DATASET.HOLD_OUT", True))
    assert [fit["images"] for fit in held["fit"]] == [6]


def test_a_head_names_the_images_behind_its_features(run):
    base = run("base", "DATASET.NUM_SHOTS", 4)
    settings = ("OPTIM.MAX_EPOCH", 1, "TRAINER.GDA.FEATURES_OF", base)
    options = ["--trainer", "GDA", "--config-file", ROOT / "configs/trainers/GDA/small.yaml"]
    head = run("head", *settings, options=options)
    assert [fit["images"] for fit in card(head)["fit"]] == [24, 12]
    tested = run("tested", *settings, options=[*options, "--eval-only", "--model-dir", head])
    assert card(tested)["fit"] == card(head)["fit"]


def test_start_from_silent_weights_is_not_forgotten(run, on_imagenet):
    file = run("trained") / LOCKED / "model.pth.tar-2"
    checkpoint = torch.load(file, weights_only=True)
    del checkpoint["metadata"]
    torch.save(checkpoint, file)
    begun = run("begun", "MODEL.INIT_WEIGHTS", file)
    tested = run("tested", options=["--eval-only", "--model-dir", begun])
    for folder in (begun, tested):
        assert card(folder)["fit"] is card(folder)["choose"] is None
    selected = on_imagenet("selected", "MODEL.INIT_WEIGHTS", file, *BEST, "TEST.SELECT_ON_TEST", True)
    again = run("again", options=["--eval-only", "--model-dir", selected])
    assert card(again)["choose"] == card(selected)["choose"] and card(again)["choose"][0]["test_images"]


def test_an_order_of_the_method_is_not_another_list_of_images(run):
    options = ["--trainer", "TDA", "--config-file", ROOT / "configs/trainers/TDA/small.yaml"]
    zero = run("zero", trainer="ZeroshotCLIP")
    one, two = (run(f"seed{seed}", "SEED", seed, options=options) for seed in (1, 2))
    assert card(zero)["test"] == card(one)["test"] == card(two)["test"]
    found = [dict(np.load(folder / "predictions.npz")) for folder in (zero, one, two)]
    for each in found:
        assert (
            each["image"].tolist() == found[0]["image"].tolist()
            and each["label"].tolist() == found[0]["label"].tolist()
        )
        assert str(each["images_sha256"]) == card(zero)["test"]["sha256"]
