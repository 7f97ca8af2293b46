"""The data-use card of results.json: which images a run has seen in which phase, where its settings
come from, and the mark of results that were selected on test images.
"""

import hashlib
import re

import numpy as np
import pytest
import torch
from dassl.engine import build_trainer
from drawn import NEED_SENTENCES, make_cfg, results, sentences_of
from finished import choice, study_of, summarise
from learned import NAMES
from marks import of_json, to_json
from matplotlib import pyplot as plt

import parse_test_res
from common.results import read_results
from common.start import ROOT
from inference import export
from measures import results as base2new
from measures.results import RESULTS_FILE, SELECTED
from studies import plots
from studies.tables import MARK
from trainers import methods
from trainers.base.feature_method import FeatureMethod
from trainers.gda import ALPHAS
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


# Settings of a run on ImageNet
ON_TEST = (
    "TEST.FINAL_MODEL",
    "best_val",
    "TEST.SELECT_ON_TEST",
    True,
)


def test_a_marked_half_is_marked_in_the_picture(tmp_path):
    def accuracy(run):
        selected = (run.dataset, run.classes) == ("small_land", "base")
        return 50, {"data_use": {"choose": [choice(8 * selected)]}}

    study = study_of(tmp_path, ["MPL"], "base2new", datasets=("small_land", "small_counts"))
    base, new, _ = plots.accuracy_time(summarise(study, accuracy)).axes
    marks = [[text.get_text() for text in ax.texts] for ax in (base, new)]
    assert MARK in marks[0] and MARK not in marks[1]
    plt.close("all")


# The report, and other readers


def test_a_log_and_the_model_card_of_an_export_say_it(
    on_imagenet, command, tmp_path, monkeypatch, capsys
):
    folder = on_imagenet("out/seed1", *ON_TEST)
    monkeypatch.setattr("sys.argv", ["parse_test_res.py", str(folder.parent)])
    parse_test_res.main()
    assert "* selected on test images: 1 of 1 runs" in capsys.readouterr().out
    command.works(export, folder, "--to", tmp_path / "model")
    card = (tmp_path / "model/README.md").read_text()
    assert re.search(
        r"\| accuracy \| [\d.]+ % on 8 images, which chose the epoch or a setting \|", card
    )
    assert of_json(tmp_path / "model/config.json")["training"]["selected_on_test"] is True


@pytest.mark.parametrize("selected", ["nothing", "start", "setting"])
def test_an_export_of_another_epoch_has_the_choices_of_all_epochs(
    selected, on_imagenet, command, tmp_path
):
    """Not that of the tested epoch."""
    settings = ["TRAIN.CHECKPOINT_FREQ", 1]
    options = []
    if selected == "start":
        start = on_imagenet("start", *ON_TEST) / "MultiModalPromptLearner/model-best.pth.tar"
        settings += ["MODEL.INIT_WEIGHTS", start]
    elif selected == "setting":
        choices = [choice(8, what="OPTIM.LR", split="test", by="oracle")]
        to_json(tmp_path / "x.json", {"settings": {"OPTIM.LR": "0.01"}, "choices": choices})
        options = ["--chosen", tmp_path / "x.json"]
    folder = on_imagenet("out", *ON_TEST, *settings, options=options)
    other = 3 - of_json(folder / RESULTS_FILE)["tested_epoch"]
    command.works(export, folder, "--load-epoch", other, "--to", tmp_path / "model")
    training = of_json(tmp_path / "model/config.json")["training"]
    card = (tmp_path / "model/README.md").read_text()
    assert "accuracy" not in training and training.get("selected_on_test", False) == (
        selected != "nothing"
    )
    assert ("| selected on test images | the epoch or a setting |" in card) == (
        selected != "nothing"
    )


def test_one_line_reports_say_it(on_imagenet, command):
    base, new, clean = (
        on_imagenet(name, *choice, "DATASET.SUBSAMPLE_CLASSES", classes, options=["--quiet"])
        for name, classes, choice in (
            ("base", "base", ON_TEST),
            ("new", "new", ON_TEST),
            ("clean", "new", ()),
        )
    )
    for half, marks in ((new, 2), (clean, 1)):
        printed = command(base2new, base, half).printed.splitlines()
        assert sum(line.endswith(" (selected on test images)") for line in printed[:-1]) == marks
        assert printed[-1].startswith("Harmonic mean: ") and printed[-1].endswith(
            "% (selected on test images)"
        )
    assert "selected" not in command(base2new, clean).printed
    content = of_json(base / RESULTS_FILE) | {"seed": 2, "shots": 4}
    to_json(base / RESULTS_FILE, content)
    assert (
        command(base2new, base, new).printed.splitlines()[-1]
        == "No harmonic mean: shots, seed of these runs differ"
    )
    content = of_json(new / RESULTS_FILE)
    del content["data_use"], content["tested_epoch"]  # those of earlier versions
    to_json(new / RESULTS_FILE, content)
    ended = command.works(base2new, new)
    assert ended.printed.startswith("MPL on ImageNet") and "selected" not in ended.printed


# Settings that test images choose, as in published code: refused, or marked in the results.


ACCEPTED = ("TEST.SELECT_ON_TEST", True)
CHOOSING = [
    name
    for name, kind in methods().items()
    if issubclass(kind, FeatureMethod)
    and "CHOOSE_ON" in kind.Settings.schema()
    and kind.spec.chosen
]


def once(method, *pairs):
    return method, f"TRAINER.{method.upper()}.PREC", "fp32", "OPTIM.MAX_EPOCH", 1, *pairs


@pytest.mark.parametrize("method", CHOOSING)
def test_oracle_is_refused_or_marked(method, launch, refused, argv, tmp_path):
    section = f"TRAINER.{method.upper()}"
    keys = [f"{section}.{key}" for key in methods()[method].spec.chosen]
    quick = [f"{section}.SEARCH_STEP", "[3, 3]"] if method.startswith("TipAdapter") else []
    if method in NEED_SENTENCES:
        quick = ["DATASET.SENTENCES", sentences_of(NAMES, tmp_path)]
    pairs = [f"{section}.CHOOSE_ON", "oracle", *quick]
    why = f"{keys[0]} is chosen on 24 images, all of them test images of EuroSAT"
    remedy = (
        f"leave out {section}.CHOOSE_ON oracle, or accept it by TEST.SELECT_ON_TEST True, "
        "which marks the results"
    )
    status, printed, _ = launch(*argv(*once(method, *pairs, *ACCEPTED), output="run"))
    assert status == 0 and f"{SELECTED}: {why}" in printed
    refused(argv(*once(method, *pairs)), f"{why}: {remedy}")
    found = results(tmp_path / "run")
    chosen = found["data_use"]["choose"]
    assert [choice["what"] for choice in chosen] == keys and read_results(
        tmp_path / "run"
    ).selected_on_test
    assert {(choice["split"], choice["images"], choice["test_images"]) for choice in chosen} == {
        ("test", 24, 24)
    }
    assert chosen[0]["sha256"] == found["data_use"]["test"]["sha256"]


def test_oracle_of_given_values_chooses_nothing(launch, argv, tmp_path):
    own = ("TRAINER.GDA.ALPHA", 1, "TRAINER.GDA.CHOOSE_ON", "oracle")
    launch.works(*argv(*once("GDA", *own), output="run"))
    assert results(tmp_path / "run")["data_use"]["choose"] == []


def test_oracle_has_the_best_test_accuracy_of_the_grid(eurosat, tiny, tmp_path):
    torch.manual_seed(1)
    own = [
        "TRAINER.GDA.CHOOSE_ON",
        "oracle",
        "TRAINER.GDA.PREC",
        "fp32",
        "DATASET.NUM_SHOTS",
        2,
        "OPTIM.MAX_EPOCH",
        1,
    ]
    trainer = build_trainer(make_cfg("GDA", eurosat, tiny, tmp_path, *own))
    trainer.train()
    alpha = trainer.method.head.alpha
    accuracies = {}
    chosen = alpha.item()
    for value in ALPHAS:
        alpha.fill_(value)
        accuracies[value] = trainer.test()
    assert accuracies[min(ALPHAS, key=lambda value: abs(value - chosen))] == max(
        accuracies.values()
    )
    assert min(accuracies.values()) < max(accuracies.values())  # else this would show nothing


def test_published_values_of_tda_are_marked(launch, refused, argv, tmp_path):
    why = "TRAINER.TDA.POSITIVE_ALPHA is chosen on 24 images, all of them test images of EuroSAT"
    remedy = (
        "leave out TRAINER.TDA.CHOOSE_ON oracle, or accept it by TEST.SELECT_ON_TEST True, "
        "which marks the results"
    )
    refused(argv(*once("TDA"), config="vit_b16_published"), f"{why}: {remedy}")
    status, _, errors = launch(
        *argv(*once("TDA", *ACCEPTED), output="run", config="vit_b16_published")
    )
    found = results(tmp_path / "run")
    assert (status, errors) == (0, []) and read_results(tmp_path / "run").selected_on_test
    choices = [(choice["what"], choice.get("trials")) for choice in found["data_use"]["choose"]]
    assert choices == [("TRAINER.TDA.POSITIVE_ALPHA", None), ("TRAINER.TDA.POSITIVE_BETA", None)]
    launch.works(*argv(*once("TDA"), output="fixed", config="vit_b16"))
    assert not read_results(tmp_path / "fixed").selected_on_test
