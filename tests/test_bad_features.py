"""Images, folders and commands that methods on features and test-time methods cannot use end in one line."""

import pytest
from drawn import write_eurosat
from marks import thorough_but

from trainers import methods
from trainers.base.feature_trainer import FeatureTrainer

HEADS = [name for name, kind in methods().items() if issubclass(kind, FeatureTrainer)]
ONCE = ("OPTIM.MAX_EPOCH", 1)


@pytest.mark.parametrize("label", [1, 2])
@pytest.mark.parametrize("method", thorough_but(HEADS[:1], HEADS))
def test_class_without_training_images(method, label, refused, argv, tmp_path):
    write_eurosat(tmp_path / "data", ["red", "blue lake", "grey"], train=[0 if n == label else 4 for n in range(3)])
    what = f"(label {label}) has images for validation or test, and none for training"
    refused(argv(method, *ONCE, root=tmp_path / "data"), what)


@pytest.fixture
def other(backbones):
    """A backbone with features of another width."""
    return backbones(32, 16, 4, 4, 64, 64, 128)


@pytest.mark.slow
def test_weights_of_another_backbone(launch, argv, other, tmp_path):
    """A head tested on its features, and a head on the features of a run there."""
    assert launch(*argv("TipAdapter", *ONCE, output="run")).status == 0
    assert launch(*argv("MPL", *ONCE, output="mpl", config="", backbone=other)).status == 0
    options = ["--eval-only", "--model-dir", tmp_path / "run"]
    tested = argv("TipAdapter", *ONCE, backbone=other, options=options)
    for line in (tested, argv("GDA", *ONCE, "TRAINER.GDA.FEATURES_OF", str(tmp_path / "mpl"))):
        assert "prompts for other weights: SHA-256" in launch(*line).error
