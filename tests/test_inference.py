"""Predicting and exporting: runs, artefacts and published checkpoints give the numbers of a run's test."""

import io
import json
from argparse import Namespace
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
import yaml
from dassl.config import get_cfg_default
from dassl.engine import build_trainer
from drawn import METHODS

import trainers
from common.start import ROOT
from experiments.configs import default_config
from experiments.configuration import extend_cfg
from experiments.inference import predict
from experiments.inference.models import open_models
from experiments.run import main as train
from experiments.session import cli_main

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["red", "green field", "blue_lake", "grey", "white snow", "black"]  # of the drawn EuroSAT
OPTIONS = Namespace(backbone="", config_file="", trainer="", load_epoch=None, device="", template="")
SHORT = ["DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 1, "DATALOADER.NUM_WORKERS", 0, "INPUT.SIZE", "(32, 32)"]


@pytest.fixture(scope="module")
def run(eurosat, deep, tmp_path_factory):
    """`run("MPL", "base", *overrides, **options)` -> the output folder of a finished run, made once."""
    root, done = tmp_path_factory.mktemp("runs"), {}

    def run(method, classes="base", *overrides, model_dir=None):
        key = str((method, classes, overrides, model_dir))
        if key not in done:
            folder = trainers.methods()[method].config_folder
            config = ROOT / "configs/trainers" / folder / f"{default_config(folder, 'base2new')}.yaml"
            argv = ["--root", eurosat, "--backbone", deep, "--trainer", method, "--config-file", config, "--seed", 1]
            argv += [
                "--dataset-config-file",
                ROOT / "configs/datasets/eurosat.yaml",
                "--output-dir",
                root / str(len(done)),
            ]
            argv += ["--eval-only", "--model-dir", model_dir] if model_dir else []
            with redirect_stdout(io.StringIO()):
                train([str(item) for item in (*argv, *SHORT, "DATASET.SUBSAMPLE_CLASSES", classes, *overrides)])
            done[key] = root / str(len(done))
        return done[key]

    return run


@pytest.fixture
def tool(ended):
    """`tool(predict, *arguments)` runs a command in this process and returns an `Ended`."""
    return lambda module, *arguments: ended(lambda: cli_main(lambda: module.main([str(item) for item in arguments])))


def rows_of(tool, *arguments) -> list[dict]:
    done = tool(predict, *arguments, "--json")
    assert (done.status, done.errors) == (0, [])
    return json.loads(done.printed)


def drawn(eurosat: Path, labels: range) -> dict[str, str]:
    """Path -> class name of the test images of these labels."""
    split = json.loads((eurosat / "eurosat/split_zhou_EuroSAT.json").read_text())["test"]
    return {f"{eurosat}/eurosat/2750/{path}": name for path, label, name in split if label in labels}


# The same numbers as a run's test


def own_test(folder: Path, classes: str) -> tuple[list[str], torch.Tensor, list[str]]:
    """The test images of a run's dataset, their logits as its trainer computes them, and the class names."""
    cfg = get_cfg_default()
    name = yaml.safe_load((folder / "config.yaml").read_text())["TRAINER"]["NAME"]
    extend_cfg(cfg, name)
    cfg.merge_from_file(str(folder / "config.yaml"))
    cfg.merge_from_list(["DATASET.SUBSAMPLE_CLASSES", classes])
    trainer = build_trainer(cfg)
    trainer.load_model(str(folder))
    trainer.set_model_mode("eval")
    batches = list(trainer.test_loader)
    logits = torch.cat([trainer.model_inference(batch["img"]) for batch in batches])
    return [path for batch in batches for path in batch["impath"]], logits, trainer.dm.dataset.classnames


@pytest.mark.parametrize("method", METHODS)
def test_logits_are_those_of_the_runs_test(method, run, tool):
    folder = run(method)
    files, expected, names = own_test(folder, "base")
    new_files, new_expected, new_names = own_test(folder, "new")
    (model,) = open_models([folder], OPTIONS)
    assert model.classifier.class_names == [name.replace("_", " ") for name in names]
    torch.testing.assert_close(model.classifier.logits(files), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.classifier.logits(new_files, new_names), new_expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.classifier.logits(files), expected, rtol=0, atol=1e-5)  # and back


def test_accuracy_is_that_of_results_json(run, tool, eurosat):
    folder, names = run("MPL", "base"), drawn(eurosat, range(3))
    rows = rows_of(tool, folder, *names, "--topk", 1)
    correct = [row["top"][0]["class"] == names[row["image"]].replace("_", " ") for row in rows]
    results = json.loads((folder / "results.json").read_text())
    assert (len(rows), 100 * sum(correct) / len(rows)) == (results["n_test"], results["accuracy"])


def test_other_class_names_give_the_accuracy_of_the_runs_test_on_new_classes(run, tool, eurosat):
    names = drawn(eurosat, range(3, 6))
    results = json.loads((run("MaPLe", "new", model_dir=run("MaPLe")) / "results.json").read_text())
    rows = rows_of(tool, run("MaPLe"), *names, "--topk", 1, "--classes", *NAMES[3:])
    correct = [row["top"][0]["class"] == names[row["image"]] for row in rows]
    assert (len(rows), 100 * sum(correct) / len(rows)) == (results["n_test"], results["accuracy"])
