"""Training steps on a stand-in CUDA device: no more launches than promised, no wait, the CPU's
numbers. Commands on it: no two devices in an operation, the CPU's numbers.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest

from common.start import ROOT
from trainers import methods
from trainers.base.feature_method import FeatureMethod

# In fp32, fp16 and amp. The official code of MPL has 1,350 launches in fp32, MaPLe's 1,254, CoOp's
# 693.
MOST = {
    "MPL": (800, 900, 900),
    "MaPLe": (750, 850, 850),
    "CoOp": (450, 480, 560),
    "PromptSRC": (900, 950, 1000),
    "CLIPSVD": (2000, 2200, 3000),  # autocast casts the factors of each map
    "DePT+CLIPSVD": (2000, 2200, 3000),
}
WAIT = ("DPC+CoOp", "MMApp", "SkipTuning")  # to choose the classes or texts of a step
PRECISIONS = ("fp32", "fp16", "amp")


pytestmark = [
    pytest.mark.slow,
    pytest.mark.thorough,
    pytest.mark.skipif(
        sys.platform != "linux" or not shutil.which("g++"),
        reason="the stand-in needs Linux and g++",
    ),
]


def records_of(*words):
    """The lines of JSON that a program on the stand-in prints."""
    paths = os.pathsep.join(str(ROOT / name) for name in ("", "toolbox", "tests/helpers"))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-m", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_steps_have_few_launches_and_never_wait():
    records = records_of("stand_in")
    stepped = {
        name
        for name, method in methods().items()
        if method.learns and not issubclass(method, FeatureMethod)
    }
    assert {record["method"] for record in records} == stepped
    for record in records:
        limit = MOST.get(record["method"], (2000, 2200, 2200))[PRECISIONS.index(record["prec"])]
        assert record["launches"] <= limit and (record["method"] in WAIT or not record["waits"])
        assert record["loss"] < (1e-4 if record["prec"] == "fp32" else 0.1), record


def test_every_method_is_tested_there_as_on_the_processor(tmp_path):
    records = records_of("stand_in.commands", tmp_path)
    assert len(records) > 50
    for record in records:
        expected = [record["cpu"]] * len(record["stand-in"])
        assert record["stand-in"] == pytest.approx(expected, rel=1e-3, abs=1e-5), record
