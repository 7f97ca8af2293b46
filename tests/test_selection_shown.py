"""The mark of results that were selected on test images: pictures, lines, logs, exports."""

import re

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
from inference import export
from measures import results as base2new
from measures.results import RESULTS_FILE, SELECTED
from studies import plots
from studies.tables import MARK
from trainers import methods
from trainers.base.feature_method import FeatureMethod
from trainers.gda import ALPHAS

pytestmark = pytest.mark.slow

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
