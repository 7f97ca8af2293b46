"""The linear probe: CoOp's search, scikit-learn's predictions, its own classes only."""

import numpy as np
import pytest
import torch
from drawn import write_eurosat
from marks import one_line
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

from studies.plan import Study
from studies.study import Variant
from trainers.linear_probe import search

ONCE = ("OPTIM.MAX_EPOCH", 1)


@pytest.fixture
def probe(build, tiny):
    """`probe("DATASET.NUM_SHOTS", 2, ...)` -> a trainer on the stand-in for EuroSAT, with four
    shots.
    """
    once = ["OPTIM.MAX_EPOCH", 1, "DATASET.NUM_SHOTS", 4]
    return lambda *options: build("LinearProbe", options=[*once, *options], backbone=tiny)


def test_search_is_coarse_and_then_fine():
    asked = []

    def accuracy(x):
        asked.append(x)
        return -abs(x - 0.3)

    found = search(accuracy)
    # Powers of ten, then the decades around the best
    assert asked[:9] == [
        6,
        4,
        2,
        0,
        -2,
        -4,
        -6,
        -1,
        1,
    ]
    assert abs(found - 0.3) < 2 / 2**6 and len(asked) == len(set(asked)) <= 7 + 2 + 8


def test_search_prefers_the_weakest_power_and_the_lower_end():
    assert search(lambda x: 1.0) == 5  # all are equal: 6, then its lower end each time
    assert search(lambda x: x <= -1.5) < -1


def arrays(trainer, items):
    """Features (images, joint) and labels (images,)."""
    found = trainer.method.features_of(items)
    return found.rows.cpu().numpy(), found.labels.cpu().numpy()


@pytest.mark.parametrize("names", [None, ["red", "blue lake"]], ids=["six classes", "two classes"])
def test_model_predicts_what_scikit_learn_predicts(names, probe, tmp_path):
    if names:
        write_eurosat(tmp_path, names, train=4, val=4)
    trainer = probe(*(["DATASET.ROOT", str(tmp_path)] if names else []))
    trainer.train()
    features, labels = arrays(trainer, trainer.dm.dataset.train_x)
    images = torch.stack([item["img"] for item in trainer.test_loader.dataset])
    logits = trainer.model_inference(images)
    tested, truth = arrays(trainer, trainer.dm.dataset.test)
    c = trainer.method.choose_c(features, labels)
    expected = LogisticRegression(C=c, max_iter=1000).fit(features, labels)  # as CoOp's code
    assert features.shape[1] == 64 and not np.allclose(np.linalg.norm(features, axis=1), 1)
    assert np.allclose(logits.softmax(dim=1), expected.predict_proba(tested), atol=1e-4)
    assert trainer.test_results["accuracy"] == pytest.approx(
        100 * np.mean(logits.argmax(1).numpy() == truth)
    )


def test_one_class_is_nothing_to_choose_from(probe, tmp_path):
    write_eurosat(tmp_path, ["red"], train=4)
    with one_line("LinearProbe has 1 class to choose from"):
        probe("DATASET.ROOT", str(tmp_path))


def test_non_finite_image_features_end_in_one_line(argv, launch, tiny, tmp_path):
    """`make fuzz` found scikit-learn's traceback."""
    state = load_file(tiny)
    torch.save(
        state | {"visual.proj": torch.full_like(state["visual.proj"], 1e38)}, tmp_path / "huge.pt"
    )
    line = argv(
        "LinearProbe", *ONCE, "TRAINER.LINEARPROBE.PREC", "fp32", backbone=tmp_path / "huge.pt"
    )
    words = f"{tmp_path}/huge.pt gives image features that are not finite: give another backbone"
    assert words in launch(*line).error and not (tmp_path / "out/results.json").exists()


def test_studies_refuse_it_in_base2new():
    with one_line("base2new has no meaning for LinearProbe"):
        Study(
            (Variant("LinearProbe", "LinearProbe", "small"),),
            ("eurosat",),
            ("few_shot", "base2new"),
        )
