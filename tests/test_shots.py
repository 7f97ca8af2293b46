"""DATASET.NUM_SHOTS as a number for each class: the same images as one number draws, classes
without images, faults.
"""

import pytest
import torch
from dassl.engine import build_trainer
from drawn import make_cfg, results
from marks import to_json

from common.errors import UsageError
from trainers.base.prompted import normalize

pytestmark = pytest.mark.slow

NAMES = ["red", "green field", "blue lake", "grey", "white snow", "black"]  # of the drawn EuroSAT


@pytest.fixture
def make(eurosat, tiny, tmp_path):
    def make(method, shots, *options):
        options = "DATASET.NUM_SHOTS", shots, f"TRAINER.{method.upper()}.PREC", "fp32", *options
        return build_trainer(
            make_cfg(method, eurosat, tiny, tmp_path / "out", "OPTIM.MAX_EPOCH", 1, *options)
        )

    return make


def images(trainer):
    dataset = trainer.dm.dataset
    return [(item.impath, item.label) for part in (dataset.train_x, dataset.val) for item in part]


def test_equal_numbers_draw_the_images_of_one_number(make, tmp_path):
    file = tmp_path / "shots of EuroSAT 1.json"
    to_json(file, dict(zip(reversed(NAMES), [3] * 6, strict=True)))
    same = [
        images(make("SSText", shots))
        for shots in (3, [3] * 6, str(tmp_path / "shots of {dataset} {seed}.json"))
    ]
    assert same[0] == same[1] == same[2] and len(same[0]) == 36


def test_a_class_without_images_keeps_its_text(make):
    trainer = make("SSText", [4, 1, 0, 2, 8, 1])
    trainer.train()
    counts = [
        [item.label for item in part].count(label)
        for part in (trainer.dm.dataset.train_x, trainer.dm.dataset.val)
        for label in range(6)
    ]
    assert counts == [4, 1, 0, 2, 8, 1, 4, 1, 0, 2, 4, 1] and len(trainer.method.class_names) == 6
    weights = normalize(trainer.method.head.weight)
    texts = normalize(trainer.model.class_texts)
    assert [
        label for label in range(6) if torch.allclose(weights[label], texts[label], atol=1e-5)
    ] == [2]


def test_a_run_with_numbers_by_class_is_recorded(run, argv, launch):
    folder = run("counts", "DATASET.NUM_SHOTS", "[2,0,1,1,1,1]", trainer="CoOp", config="small")
    found = results(folder)
    assert found["shots"] == [2, 0, 1, 1, 1, 1] and found["data_use"]["fit"][0]["images"] == 6
    assert (
        "DATASET.NUM_SHOTS"
        in launch(*argv("CoOp", "DATASET.NUM_SHOTS", "[1,1,1,1,1,1]", output="counts")).error
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ('{"rose": 1}', "there is no class 'rose'"),
        ('{"red": 1}', "has no number for the class 'green field'"),
        ('{"red": 1.5', "is not JSON"),
    ],
)
def test_numbers_that_do_not_fit_the_classes_are_refused(given, words, argv, refused, tmp_path):
    file = tmp_path / "shots.json"
    file.write_text(given)
    refused(argv("SSText", "DATASET.NUM_SHOTS", file, "OPTIM.MAX_EPOCH", 1), words)


def test_held_out_images_are_a_shot_of_the_training_images(build):
    def images(*options):
        dataset = build("CoOp", "all", options=options).dm.dataset
        return [
            {item.impath for item in part} for part in (dataset.train_x, dataset.val, dataset.test)
        ]

    train, _, test = images()
    kept, held, tested = images("DATASET.HOLD_OUT", True)
    assert (
        kept | held == train and not kept & held and len(kept) == len(held) == 6 and tested == test
    )
    with pytest.raises(
        UsageError,
        match="HOLD_OUT leaves class '.*' of EuroSAT without training images: give two or",
    ):
        images("DATASET.HOLD_OUT", True, "DATASET.NUM_SHOTS", 1)
