"""The methods and datasets on a stand-in for the published Dassl 0.6.3: a user's train.py, and this project's."""

import json
import os
import re
import subprocess
from functools import reduce

import pytest
import yaml
from drawn import error_lines
from marks import thorough_but

from common.start import ROOT

pytestmark = pytest.mark.slow

# In the style of CoOp's train.py
TRAIN = """
import sys

from dassl.config import get_cfg_default
from dassl.engine import build_trainer
from dassl.utils import set_random_seed, setup_logger

import datasets
import trainers

cfg = get_cfg_default()
datasets.extend_cfg(cfg)
trainers.extend_cfg(cfg)
for file in sys.argv[1:3]:
    cfg.merge_from_file(file)
cfg.merge_from_list(sys.argv[3:])
cfg.freeze()
set_random_seed(cfg.SEED)
setup_logger(cfg.OUTPUT_DIR)
build_trainer(cfg).train()
build_trainer(cfg).train()  # resumes after the last epoch
trainer = build_trainer(cfg)
trainer.load_model(cfg.OUTPUT_DIR, epoch=cfg.OPTIM.MAX_EPOCH)
print(f"tested again: {trainer.test():.1f}%")
"""
YAMLS = {"MPL": "vit_b4_c1_add2_rm1.yaml", "PromptSRC": "vit_b16_c2_ep20_batch4_4+4ctx.yaml", "CoOp": "vit_b16.yaml"}
DATASET = ROOT / "configs/datasets/eurosat.yaml"


@pytest.fixture
def published(tmp_path):
    """`published(method)` -> its published YAML file."""

    def published(method):
        settings = json.loads((ROOT / "tests/published_settings.json").read_text())[method]["yaml"]
        tree = {}
        for name, value in settings[f"{method}/{YAMLS[method]}"].items():
            *groups, key = name.split(".")
            reduce(lambda node, group: node.setdefault(group, {}), groups, tree)[key] = value
        file = tmp_path / YAMLS[method]
        file.write_text(yaml.safe_dump(tree))
        return file

    return published


@pytest.fixture
def run(deep, python):
    """`run(script, *arguments)`: the ended process of a script on the stand-in, in epochs of three small batches."""

    def run(script, *arguments, epochs=2):
        pairs = ["MODEL.BACKBONE.NAME", deep, "INPUT.SIZE", "(32, 32)", "DATASET.NUM_SHOTS", 2]
        pairs += ["OPTIM.MAX_EPOCH", epochs, "DATALOADER.NUM_WORKERS", 0, "DATALOADER.TRAIN_X.BATCH_SIZE", 4]
        command = [python, ROOT / "tests/published_dassl.py", script, *map(str, (*arguments, *pairs))]
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        return subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)

    return run


@pytest.mark.parametrize("method", thorough_but(("MPL",), ("MPL", "PromptSRC", "CoOp")))
def test_train_py_of_a_user(method, published, run, eurosat, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    own = ["TRAINER.NAME", method, "DATASET.ROOT", eurosat, "OUTPUT_DIR", tmp_path / "out", "SEED", 1]
    done = run(script, DATASET, published(method), *own)
    assert done.returncode == 0 and "Error" not in done.stderr, done.stderr
    accuracies = re.findall(r"(?:accuracy|again): (\S+)%", done.stdout)
    assert len(accuracies) == 4 and len(set(accuracies)) == 1
    assert (tmp_path / "out/log.txt").read_text().count("epoch [2/2] batch [3/3]") == 1


# Methods of other kinds, with what they need on few images, and the error.
OTHERS = {
    "ZERO": (["TRAINER.ZERO.VIEWS", 4], ""),
    "GDA": (["TRAINER.GDA.AUGMENT_EPOCH", 2], ""),
    "TDA": ([], "TDA depends on the images before, and the published Dassl tests each by itself"),
    "TPT": (["TRAINER.TPT.VIEWS", 4], ""),
    "TipAdapterF": (["TRAINER.TIPADAPTERF.AUGMENT_EPOCH", 2], ""),
    "TaskRes": ([], ""),
}


@pytest.mark.parametrize("method", thorough_but(("ZERO", "GDA", "TDA"), OTHERS))
def test_methods_on_features_and_on_views(method, published, run, eurosat, tmp_path):
    (tmp_path / "train.py").write_text(TRAIN[: TRAIN.index("build_trainer(cfg).train()  # resumes")])
    own, error = OTHERS[method]
    options = ["TRAINER.NAME", method, f"TRAINER.{method.upper()}.PREC", "fp32", *own]
    options += ["DATASET.ROOT", eurosat, "OUTPUT_DIR", tmp_path / "out", "SEED", 1]
    done = run(tmp_path / "train.py", DATASET, published("CoOp"), *options, epochs=1)
    assert error in done.stderr and (done.returncode == 0) == (not error), done.stderr
    assert error or re.findall(r"accuracy: (\S+)%", done.stdout)


@pytest.mark.thorough
def test_train_py_of_this_project(published, run, eurosat, tmp_path):
    own = ["--trainer", "MPL", "--root", eurosat, "--output-dir", tmp_path / "out", "--seed", 1]
    files = ["--dataset-config-file", DATASET, "--config-file", published("MPL")]
    done = run(ROOT / "train.py", *files, *own, "TEST.FINAL_MODEL", "best_val")
    assert (done.returncode, error_lines(done.stderr)) == (0, [])
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert re.findall(r"accuracy: (\S+)%", done.stdout)[-1] == f"{results['accuracy']:.1f}"
    assert (results["n_test"], results["epochs"], results["data_use"]["test"]["evaluations"]) == (24, 2, 1)
    tests = map(json.loads, (tmp_path / "out/tests.jsonl").read_text().splitlines())
    assert [test["split"] for test in tests] == ["val", "val", "test"]
