"""The sentence in which a published checkpoint, which does not name its dataset, reads the class names."""

import json
from dataclasses import replace

import pytest
import torch
import yaml
from drawn import METHODS
from learned import OPTIONS, rows_of
from marks import thorough_but
from published_files import save_published

from inference import predict
from inference.classifier import PromptedClassifier
from inference.models import open_models
from trainers import methods

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("method", ["MMRL", "TCP"])
def test_published_checkpoint_is_told_its_dataset(method, finished, command, photos, tmp_path):
    """Without the dataset's sentence its predictions differed from those of the run's test, and no line said so."""
    folder = "MultiModalRepresentationLearner" if method == "MMRL" else "prompt_learner"
    run = finished(method)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    state = torch.load(run / folder / "model.pth.tar-1", weights_only=True)["state_dict"]
    file = save_published(tmp_path, state, saved_as=folder)
    (yaml_file := tmp_path / method / "settings.yaml").parent.mkdir()
    parts = {key: settings[key] for key in ("INPUT", "TRAINER")}
    given = ["--config-file", yaml_file, "--backbone", settings["MODEL"]["BACKBONE"]["NAME"]]
    given += ["--classes", "red", "green field", "blue lake", "--json"]

    def rows(*options, **more):
        yaml_file.write_text(yaml.safe_dump(parts | more))
        done = command(predict, file, photos, *given, *options)
        told = any(f"does not say its dataset: {method} reads the class names" in line for line in done.errors)
        return json.loads(done.printed), told

    expected = rows_of(command, run, photos)
    without, told = rows()
    assert without != expected and told
    assert rows("--template", "a centered satellite photo of {}.") == (expected, False)
    assert rows(DATASET={"NAME": "EuroSAT"}) == (expected, False)


@pytest.mark.parametrize("method", thorough_but(("MMRL", "CoOp"), METHODS))
def test_methods_say_whether_they_read_the_sentence_of_a_dataset(method, finished):
    """A published checkpoint depends on it."""
    kind = methods()[method]
    if not kind.learns:
        pytest.skip("has no checkpoints")
    smaller = ("TRAINER.LOCOOP.TOPK", 0.2) if method == "LoCoOp" else ()
    classes = "base" if kind.transfers else "all"
    ((_, own),) = open_models([finished(method, classes, *smaller)], OPTIONS)
    other = replace(own.description, template="some {} in a long drawing")
    pixels = torch.randn(2, 3, *own.cfg.INPUT.SIZE, generator=torch.manual_seed(0))
    changed = PromptedClassifier(other, own.checkpoint, own.source, own.cfg.MODEL.BACKBONE.NAME, clip=own.clip)
    assert kind.reads_template != torch.allclose(changed.logits(pixels), own.logits(pixels), atol=1e-4)
