"""The page with models of special class names or images: equal names, and views of an image."""

import shutil

import pytest
import torch
from drawn import arguments
from visitors import classified_by

from inference.load import open_models
from inference.options import LoadOptions

pytest.importorskip("gradio", reason="gradio is not installed (requirements-serve.txt)")
from inference.serving.page import Page  # noqa: E402, RUF100

pytestmark = pytest.mark.slow


def test_model_with_fixed_and_equal_names_answers_for_them(finished, photos, tmp_path):
    """As ImageNet has them. The page had each name once, which the model refused as other names."""
    run = finished("CoOp", "base", "TRAINER.COOP.CSC", True, "TRAINER.COOP.CTX_INIT", "")
    checkpoint = torch.load(
        shutil.copytree(run, tmp_path / "run") / "prompt_learner/model.pth.tar-1"
    )
    names = checkpoint["metadata"]["class_names"] = ["missile", "lake", "missile"]
    torch.save(checkpoint, tmp_path / "run/prompt_learner/model.pth.tar-1")
    models = open_models([tmp_path / "run"], LoadOptions())
    photo = str(photos / "a.jpg")
    message, bars = classified_by(Page(models, names, []), photo, "missile\nlake")
    (expected,) = models[0].classifier.probabilities(photo).tolist()
    assert not message["visible"]
    assert bars == pytest.approx({"missile": expected[0] + expected[2], "lake": expected[1]})


def test_roll_out_of_a_method_with_views_equals_the_roll_out_of_the_whole_image(
    launch, eurosat, tiny, photos, tmp_path
):
    """Each image was a traceback of the server."""
    own = ["TRAINER.ZERO.VIEWS", 4, "TEST.MAX_IMAGES", 2]
    argv = arguments(eurosat, tiny, tmp_path / "run", *own, trainer="ZERO", config="small")
    launch.works(*argv)
    models = open_models([tmp_path / "run"], LoadOptions(class_names=["a", "b"]))
    pixels = models[0].classifier.pixels([photos / "a.jpg"])
    ((picture, caption),) = Page(models, ["a", "b"], []).roll_outs([pixels])
    assert caption.startswith("CLIP without prompts: ") and picture.size == (32, 32)
