"""Settings that test images choose, as in published code: refused, or marked in the results."""

import pytest
import torch
from dassl.engine import build_trainer
from drawn import make_cfg, results

from experiments.results import SELECTED, selected_on_test
from trainers import methods
from trainers.base.feature_trainer import FeatureTrainer
from trainers.gda import ALPHAS

pytestmark = pytest.mark.slow

ACCEPTED = ("TEST.SELECT_ON_TEST", True)
CHOOSING = [
    name
    for name, kind in methods().items()
    if issubclass(kind, FeatureTrainer) and "CHOOSE_ON" in kind.Settings.schema() and kind.spec.chosen
]


def once(method, *pairs):
    return method, f"TRAINER.{method.upper()}.PREC", "fp32", "OPTIM.MAX_EPOCH", 1, *pairs


@pytest.mark.parametrize("method", CHOOSING)
def test_oracle_is_refused_or_marked(method, launch, refused, argv, tmp_path):
    section = f"TRAINER.{method.upper()}"
    keys = [f"{section}.{key}" for key in methods()[method].spec.chosen]
    quick = [f"{section}.SEARCH_STEP", "[3, 3]"] if method.startswith("TipAdapter") else []
    pairs = [f"{section}.CHOOSE_ON", "oracle", *quick]
    why = f"{keys[0]} is chosen on 24 images, all of them test images of EuroSAT"
    remedy = f"leave out {section}.CHOOSE_ON oracle, or accept it by TEST.SELECT_ON_TEST True, which marks the results"
    status, printed, _ = launch(*argv(*once(method, *pairs, *ACCEPTED), output="run"))
    assert status == 0 and f"{SELECTED}: {why}" in printed
    refused(argv(*once(method, *pairs)), f"{why}: {remedy}")
    found = results(tmp_path / "run")
    chosen = found["data_use"]["choose"]
    assert [choice["what"] for choice in chosen] == keys and selected_on_test(found)
    assert {(choice["split"], choice["images"], choice["test_images"]) for choice in chosen} == {("test", 24, 24)}
    assert chosen[0]["sha256"] == found["data_use"]["test"]["sha256"]


def test_oracle_of_given_values_chooses_nothing(launch, argv, tmp_path):
    own = ("TRAINER.GDA.ALPHA", 1, "TRAINER.GDA.CHOOSE_ON", "oracle")
    assert launch(*argv(*once("GDA", *own), output="run")).status == 0
    assert results(tmp_path / "run")["data_use"]["choose"] == []


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


def test_published_values_of_tda_are_marked(launch, refused, argv, tmp_path):
    why = "TRAINER.TDA.POSITIVE_ALPHA is chosen on 24 images, all of them test images of EuroSAT"
    remedy = "leave out TRAINER.TDA.CHOOSE_ON oracle, or accept it by TEST.SELECT_ON_TEST True, which marks the results"
    refused(argv(*once("TDA"), config="vit_b16_published"), f"{why}: {remedy}")
    status, _, errors = launch(*argv(*once("TDA", *ACCEPTED), output="run", config="vit_b16_published"))
    found = results(tmp_path / "run")
    assert (status, errors) == (0, []) and selected_on_test(found)
    choices = [(choice["what"], choice.get("trials")) for choice in found["data_use"]["choose"]]
    assert choices == [("TRAINER.TDA.POSITIVE_ALPHA", None), ("TRAINER.TDA.POSITIVE_BETA", None)]
    assert launch(*argv(*once("TDA"), output="fixed", config="vit_b16")).status == 0
    assert not selected_on_test(results(tmp_path / "fixed"))
