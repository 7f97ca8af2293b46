"""Predicting with published checkpoints, which name neither their classes nor
their dataset."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from drawn import METHODS
from learned import own_test, rows_of
from marks import thorough_but
from published_files import save_published, write_lora

from common.start import ROOT
from inference import predict
from inference.classifier import PromptedClassifier
from inference.load import load
from inference.options import LoadOptions
from trainers import methods

pytestmark = pytest.mark.slow


def test_published_checkpoint_needs_its_yaml_and_class_names(
    finished, command, photos, deep, tmp_path
):
    ours = torch.load(
        finished("MaPLe") / "MultiModalPromptLearner/model.pth.tar-1", weights_only=True
    )
    state = {f"module.{key}": value for key, value in ours["state_dict"].items()}
    state["module.prompt_learner.token_prefix"] = torch.zeros(50, 1, 64)
    file = save_published(tmp_path / "published", state)
    settings = tmp_path / "MaPLe/settings.yaml"  # for images of 32 px
    settings.parent.mkdir()
    config = ROOT / "configs/trainers/MaPLe/vit_b16_c2_ep5_batch4_2ctx.yaml"
    settings.write_text(f"_BASE_: {config}\nINPUT:\n  SIZE: (32, 32)\n")
    given = "--config-file", settings, "--backbone", deep
    options = *given, "--classes", "red", "green field", "blue lake"
    expected = rows_of(command, finished("MaPLe"), photos)
    for model in (tmp_path / "published", file.parent, file):
        done = command.works(predict, model, photos, *options, "--json")
        assert json.loads(done.printed) == expected
        (line,) = done.errors
        assert f"{model} does not say on which weights" in line and str(deep) in line

    def refusal(*options):
        return command(predict, file, photos, *options).error

    assert "no class names: give them by --classes" in refusal(*given)
    assert "is a checkpoint of MaPLe, not of CoOp" in refusal(*options, "--trainer", "CoOp")
    # Its sentence would be another
    settings.write_text(f"{settings.read_text()}DATASET:\n  NAME: EuroSat\n")
    assert "there is no dataset 'EuroSat': did you mean EuroSAT?" in refusal(*options)


# The sentence in which a published checkpoint, which does not name its dataset, reads the class
# names.


@pytest.mark.parametrize("method", ["MMRL", "TCP"])
def test_published_checkpoint_gets_its_dataset_from_the_user(
    method, finished, command, photos, tmp_path
):
    """Without the dataset's sentence its predictions differed from those of the run's test, and no
    line said so.
    """
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
        told = any(
            f"does not say its dataset: {method} reads the class names" in line
            for line in done.errors
        )
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
    of_method = {
        "LoCoOp": ("TRAINER.LOCOOP.TOPK", 0.2),
        "FineTune": ("TRAINER.FINETUNE.ENCODER", "both"),
    }
    smaller = of_method.get(method, ())
    classes = "base" if kind.transfers else "all"
    own = load(finished(method, classes, *smaller))
    other = replace(own.description, template="some {} in a long drawing")
    pixels = torch.randn(2, 3, *own.cfg.INPUT.SIZE, generator=torch.manual_seed(0))
    options = LoadOptions(backbone=own.cfg.MODEL.BACKBONE.NAME)
    changed = PromptedClassifier(other, own.checkpoint, own.source, options, clip=own.clip)
    same = torch.allclose(changed.logits(pixels), own.logits(pixels), atol=1e-4)
    assert same != kind.reads_template


def test_a_published_lora_file_predicts_as_its_run(finished, tmp_path):
    """predict, export and the page refused what `--eval-only` reads."""
    run = finished("CLIPLoRA", "base", "TRAINER.CLIPLORA.N_ITERS", 4)
    files, expected, names = own_test(run, "base")
    (checkpoint,) = run.glob("*/model.pth.tar-*")
    write_lora(tmp_path / "set", torch.load(checkpoint, weights_only=True)["state_dict"])
    options = {"config_file": str(run / "config.yaml"), "method": "CLIPLoRA"}
    for path in (tmp_path / "set", tmp_path / "set/lora_weights.pt"):
        classifier = load(path, LoadOptions(class_names=names, **options))
        torch.testing.assert_close(classifier.logits(files), expected, rtol=0, atol=1e-5)


def test_run_without_a_finished_training_is_refused(finished, command, photos, tmp_path):
    folder = shutil.copytree(finished("CoOp"), tmp_path / "run")
    (folder / "results.json").unlink()
    error = command(predict, folder, photos).error
    assert "is not finished: it has no results.json" in error and "--load-epoch" in error
    assert len(rows_of(command, folder, photos, "--load-epoch", 1)) == 5
    (folder / "config.yaml").write_text("TRAINER: [")
    assert "config.yaml" in command(predict, folder, photos, "--load-epoch", 1).error
