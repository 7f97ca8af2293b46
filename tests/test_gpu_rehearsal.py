"""Training steps on a stand-in CUDA device: no more launches than promised, no wait, the CPU's numbers."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from common.start import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="the stand-in needs Linux and g++"),
]
# The official code of MPL has 1,350 launches in fp32, MaPLe's 1,254, CoOp's 693.
MOST = {"MPL": (800, 900, 900), "MaPLe": (750, 850, 850), "CoOp": (450, 480, 560), "PromptSRC": (900, 950, 1000)}
PRECISIONS = ("fp32", "fp16", "amp")


def on_stand_in(*command):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def rehearse(tmp_path, *options):
    file = tmp_path / "records.json"
    done = on_stand_in("benchmarks/gpu_rehearsal.py", "--json", file, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(file.read_text())


def check(found, most):
    """Check that the records have few launches, no wait, and the CPU's losses."""
    for each in found:
        assert each["launches"] <= most[each["prec"]] and each["waits"] == 0, each
        assert each["loss"] < (1e-4 if each["prec"] == "fp32" else 0.1), each


@pytest.mark.thorough
@pytest.mark.parametrize("method", MOST)
def test_steps_have_few_launches_and_never_wait(method, tmp_path):
    found = rehearse(tmp_path, "--trainer", method, "--prec", *PRECISIONS, "--classes", 5)
    assert {each["prec"] for each in found} == set(PRECISIONS)
    check(found, dict(zip(PRECISIONS, MOST[method], strict=True)))


@pytest.mark.thorough
def test_a_graph_computes_the_steps_with_few_launches(tmp_path):
    """Six steps of other images; a wait, or a copy that waits, would end the capture."""
    methods = ("MPL", "MaPLe", "CoOp", "CoCoOp", "PromptSRC", "ProGrad", "KgCoOp", "TCP")
    found = rehearse(tmp_path, "--graphs", "--trainer", *methods, "--prec", "fp32", "amp", "--classes", 5)
    assert len(found) == 2 * len(methods)
    check(found, {"fp32": 20, "amp": 20})


@pytest.mark.thorough
def test_dropout_is_not_captured(tmp_path):
    options = ("--graphs", "--trainer", "CLIPLoRA", "--prec", "fp32", "--classes", 2)
    done = on_stand_in("benchmarks/gpu_rehearsal.py", *options)
    assert done.returncode == 1 and "repeat the same dropout in every step: set MODEL.CUDA_GRAPHS False" in done.stdout


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("file", "chosen"),
    [
        ("tests/test_golden.py", "fast and (mpl or maple or coop or kgcoop or promptsrc or vpt)"),
        ("tests/test_trainers.py", "resume_is_bit_identical and (MPL or CoOp or PromptSRC)"),
    ],
)
def test_tests_pass_as_on_a_gpu(file, chosen):
    done = on_stand_in("-m", "benchmarks.stand_in", file, "-k", chosen)
    (passed,) = re.findall(r"^(\d+) passed", done.stdout, re.M) or ["0"]
    assert done.returncode == 0 and int(passed) >= 3, done.stdout[-3000:] + done.stderr[-1000:]


@pytest.mark.parametrize("run", ["run_path('benchmarks/gpu_rehearsal.py')", "run_module('benchmarks.stand_in')"])
def test_without_a_compiler_it_ends_in_one_line(run):
    done = on_stand_in("-c", f"import shutil, runpy; shutil.which = lambda name: None; runpy.{run}")
    assert done.returncode == 2
    assert done.stderr == "error: the stand-in device needs g++: install it (on Debian: apt install g++)\n"
