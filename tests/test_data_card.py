"""The data-use card of results.json: which images a run has seen in which phase, and where its
settings come from.
"""

import hashlib

import numpy as np
import pytest
import torch
from drawn import results
from marks import of_json

from common.start import ROOT
from trainers.linear_probe import TRIALS, search

pytestmark = pytest.mark.slow

LOCKED = "MultiModalPromptLearner"
BEST = ("TEST.FINAL_MODEL", "best_val")


def card(folder):
    return results(folder)["data_use"]


def evaluate(folder):
    """Options of a test of the prompts in a folder."""
    return ["--eval-only", "--model-dir", folder]


def digest(root, part, names):
    """Of the images of a split of the synthetic EuroSAT, by the description of `list_digest`."""
    rows = of_json(root / "eurosat/split_zhou_EuroSAT.json")[part]
    lines = [
        f"eurosat/2750/{path}\0{label}\0{name}\n" for path, label, name in rows if label < names
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def test_card_of_a_training_run(run, eurosat, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(f"_BASE_: {ROOT}/configs/trainers/MPL/vit_b4_c1_add2_rm1.yaml\n")
    settings = ("DATASET.SUBSAMPLE_CLASSES", "base", "DATASET.NUM_SHOTS", 2)
    found = card(run("out", *settings, options=["--config-file", file]))
    of_images = {"dataset": "EuroSAT", "classes": "base", "class_names": 3}
    (fit,) = found["fit"]
    assert len(fit.pop("sha256")) == 64
    assert fit == of_images | {"split": "train", "images": 6, "labels": 6}
    test = of_images | {
        "split": "test",
        "images": 12,
        "labels": 12,
        "sha256": digest(eurosat, "test", 3),
    }
    assert found["test"] == test | {"evaluations": 1}
    origins = {key: origin for origin, keys in found["settings"].items() for key in keys}
    assert (
        origins["DATASET.NUM_SHOTS"]
        == origins["SEED"]
        == origins["MODEL.BACKBONE.NAME"]
        == "command line"
    )
    assert origins["OPTIM.LR"] == f"{tmp_path.name}/own.yaml"  # whose base has it
    assert origins["DATASET.NAME"] == "datasets/eurosat.yaml"
    assert "OPTIM.MOMENTUM" not in origins  # a default
    everything = card(run("all", "DATASET.NUM_SHOTS", -1))["fit"][0]
    assert everything["images"] == 48 and everything["sha256"] == digest(eurosat, "train", 6)


def test_an_evaluation_says_what_its_prompts_were_learned_from(run):
    trained = run("trained", "DATASET.SUBSAMPLE_CLASSES", "base")
    tested = run("tested", "DATASET.SUBSAMPLE_CLASSES", "new", options=evaluate(trained))
    assert card(tested)["fit"] == card(trained)["fit"]
    assert (card(tested)["test"]["classes"], card(tested)["test"]["evaluations"]) == ("new", 1)
    begun = run("begun", "MODEL.INIT_WEIGHTS", trained / LOCKED / "model.pth.tar-2")
    assert [fit["classes"] for fit in card(begun)["fit"]] == ["base", "all"]
    again = run("again", options=evaluate(begun))
    assert card(again)["fit"] == card(begun)["fit"]
    zero = card(run("zero", trainer="ZeroshotCLIP"))
    assert zero["fit"] == zero["choose"] == []


def test_every_test_of_a_folder_is_counted(run, launch, eurosat, tiny, tmp_path):
    trained = run("trained")
    for number in (1, 2, 3):
        assert card(run("tested", options=evaluate(trained)))["test"]["evaluations"] == number
    (tmp_path / "tested/results.json").unlink()  # which a run with other settings does not replace
    of_others = run("tested", "TEST.SPLIT", "val", options=evaluate(trained))
    assert card(of_others)["test"]["evaluations"] == 1
    with open(trained / "tests.jsonl", "a") as tests:
        tests.write('{"date": "2026-')  # by a process that was killed
    assert card(run("trained"))["test"]["evaluations"] == 2
    assert card(run("trained"))["test"]["evaluations"] == 3


def test_a_chosen_setting_is_no_default_and_has_as_many_trials_as_the_card_says(run):
    found = card(run("out", "OPTIM.MAX_EPOCH", 1, trainer="LinearProbe", config="small"))
    assert found["settings"]["a choice"] == ["TRAINER.LINEARPROBE.C"]
    assert [(choice["what"], choice["trials"]) for choice in found["choose"]] == [
        ("TRAINER.LINEARPROBE.C", TRIALS)
    ]
    tried = set()
    search(lambda x: tried.add(x) or -abs(x - 1.3))
    assert len(tried) == TRIALS


def test_best_epoch_lists_its_training_images_once(run):
    best = card(run("best", *BEST))
    last = card(run("last"))
    assert len(last["fit"]) == 1 and best["fit"] == last["fit"]
    held = card(run("held", *BEST, "DATASET.HOLD_OUT", True))
    assert [fit["images"] for fit in held["fit"]] == [6]
    # Validation images do not touch test images.
    assert (best["test"]["evaluations"], best["choose"][0]["test_images"]) == (1, 0)
    assert best["choose"][0]["sha256"] != best["test"]["sha256"]


def test_start_from_silent_weights_is_not_forgotten(run, on_imagenet):
    file = run("trained") / LOCKED / "model.pth.tar-2"
    checkpoint = torch.load(file, weights_only=True)
    del checkpoint["metadata"]
    torch.save(checkpoint, file)
    begun = run("begun", "MODEL.INIT_WEIGHTS", file)
    tested = run("tested", options=evaluate(begun))
    for folder in (begun, tested):
        assert card(folder)["fit"] is card(folder)["choose"] is None
    selected = on_imagenet(
        "selected", "MODEL.INIT_WEIGHTS", file, *BEST, "TEST.SELECT_ON_TEST", True
    )
    again = run("again", options=evaluate(selected))
    assert (
        card(again)["choose"] == card(selected)["choose"]
        and card(again)["choose"][0]["test_images"]
    )


def test_an_order_of_the_method_is_not_another_list_of_images(run):
    zero = run("zero", trainer="ZeroshotCLIP")
    one, two = (run(f"seed{seed}", "SEED", seed, trainer="TDA", config="small") for seed in (1, 2))
    assert card(zero)["test"] == card(one)["test"] == card(two)["test"]
    for key in ("image", "label", "images_sha256"):
        first, *others = (
            np.load(folder / "predictions.npz")[key].tolist() for folder in (zero, one, two)
        )
        assert others == [first, first]
