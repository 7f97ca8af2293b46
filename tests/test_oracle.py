"""Settings that test images choose, as in published code: refused, or marked in the results."""

import json

import pytest
import torch
from dassl.engine import build_trainer
from drawn import make_cfg

from common.start import ROOT
from experiments.results import FILE, SELECTED, selected_on_test
from trainers import methods
from trainers.base.feature_trainer import FeatureTrainer
from trainers.gda import ALPHAS

pytestmark = pytest.mark.slow

ACCEPTED = ("TEST.SELECT_ON_TEST", True)
CHOOSING = [name for name, kind in methods().items() if issubclass(kind, FeatureTrainer) and kind.chosen]


@pytest.fixture
def arguments(eurosat, tiny, tmp_path):
    """`arguments("GDA", KEY, VALUE, ...)` of train.py, with the small settings unless `config` names others."""

    def arguments(method, *pairs, output="run", config="small"):
        configs = ["--dataset-config-file", ROOT / "configs/datasets/eurosat.yaml", "--trainer", method]
        configs += ["--config-file", ROOT / f"configs/trainers/{method}/{config}.yaml"]
        own = ["--root", eurosat, "--backbone", tiny, "--seed", 1, "--output-dir", tmp_path / output, *configs]
        short = ["INPUT.SIZE", "(32, 32)", "DATALOADER.NUM_WORKERS", 0, "DATASET.NUM_SHOTS", 2]
        return [*own, *short, f"TRAINER.{method.upper()}.PREC", "fp32", *pairs]

    return arguments


@pytest.mark.parametrize("method", CHOOSING)
def test_oracle_is_refused_or_marked(method, launch, refused, arguments, tmp_path):
    section = f"TRAINER.{method.upper()}"
    keys = [f"{section}.{key}" for key in methods()[method].chosen]
    quick = {"TipAdapter": ("SEARCH_STEP", "[3, 3]"), "TipAdapterF": ("SEARCH_STEP", "[3, 3]")}.get(method)
    pairs = [f"{section}.CHOOSE_ON", "oracle", *((f"{section}.{quick[0]}", quick[1]) if quick else ())]
    if method == "TipAdapterF":
        pairs += ["OPTIM.MAX_EPOCH", 2]
    why = f"{keys[0]} is chosen on 24 images, all of them test images of EuroSAT"
    remedy = f"leave out {section}.CHOOSE_ON oracle, or accept it by TEST.SELECT_ON_TEST True, which marks the results"
    status, printed, _ = launch(*arguments(method, *pairs, *ACCEPTED))
    assert status == 0 and f"{SELECTED}: {why}" in printed
    refused(arguments(method, *pairs, output="refused"), f"{why}: {remedy}")
    results = json.loads((tmp_path / "run" / FILE).read_text())
    chosen = results["data_use"]["choose"]
    assert [choice["what"] for choice in chosen] == keys and selected_on_test(results)
    assert {(choice["split"], choice["images"], choice["test_images"]) for choice in chosen} == {("test", 24, 24)}
    assert chosen[0]["sha256"] == results["data_use"]["test"]["sha256"]


def test_oracle_of_given_values_chooses_nothing(launch, arguments, tmp_path):
    given = ["TRAINER.GDA.ALPHA", 1, "TRAINER.GDA.CHOOSE_ON", "oracle"]
    assert launch(*arguments("GDA", *given)).status == 0
    assert json.loads((tmp_path / "run" / FILE).read_text())["data_use"]["choose"] == []


def test_oracle_has_the_best_test_accuracy_of_the_grid(eurosat, tiny, tmp_path):
    torch.manual_seed(1)
    own = ["TRAINER.GDA.CHOOSE_ON", "oracle", "TRAINER.GDA.PREC", "fp32", "DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 1]
    trainer = build_trainer(make_cfg("GDA", eurosat, tiny, tmp_path, *own))
    trainer.train()
    alpha, accuracies = trainer.head.alpha, {}
    chosen = alpha.item()
    for value in ALPHAS:
        alpha.fill_(value)
        accuracies[value] = trainer.test()
    assert accuracies[min(ALPHAS, key=lambda value: abs(value - chosen))] == max(accuracies.values())
    assert min(accuracies.values()) < max(accuracies.values())  # else this would show nothing


def test_published_values_of_tda_are_marked(launch, refused, arguments, tmp_path):
    why = "TRAINER.TDA.POSITIVE_ALPHA is chosen on 24 images, all of them test images of EuroSAT"
    remedy = "leave out TRAINER.TDA.CHOOSE_ON oracle, or accept it by TEST.SELECT_ON_TEST True, which marks the results"
    published = arguments("TDA", config="vit_b16_published")
    refused(published, f"{why}: {remedy}")
    status, _, errors = launch(*published, *ACCEPTED)
    results = json.loads((tmp_path / "run" / FILE).read_text())
    assert (status, errors) == (0, []) and selected_on_test(results)
    choices = [(choice["what"], choice.get("trials")) for choice in results["data_use"]["choose"]]
    assert choices == [("TRAINER.TDA.POSITIVE_ALPHA", None), ("TRAINER.TDA.POSITIVE_BETA", None)]
    assert launch(*arguments("TDA", output="fixed", config="vit_b16")).status == 0
    assert not selected_on_test(json.loads((tmp_path / "fixed" / FILE).read_text()))
