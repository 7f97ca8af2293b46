"""Errors about missing folders say what there is."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from drawn import arguments

from common.errors import UsageError
from common.nearest import check_folder, nearest_folder, what_exists
from common.start import ROOT


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for run in ("imagenet/MPL/a_16shots/seed1", "imagenet/MPL/a_16shots/seed2", "evaluation/dtd/MPL/a_16shots/seed1"):
        (tmp_path / "output/crossdataset" / run).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return Path("output/crossdataset")


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("imagenet/MPL/a_16shots/seed3", "imagenet/MPL/a_16shots/seed"),  # SEED
        ("eurosat/MPL/a_16shots/seed1", "imagenet/MPL/a_16shots/seed1"),  # SOURCE
        ("imagenet/MPL/a_4shots/seed1", "imagenet/MPL/a_16shots/seed1"),  # SHOTS
        ("imagenet/MPL/b_16shots/seed7", "imagenet/MPL/a_16shots/seed"),  # CFG and SEED
        ("evaluation/dtd/CoOp/a_16shots/seed1", "evaluation/dtd/MPL/a_16shots/seed1"),
    ],
)
def test_nearest_folder_differs_in_the_fewest_parts(asked, found, tree):
    assert str(nearest_folder(tree / asked)).startswith(str(tree / found))


def test_another_output_folder_is_found(tree):
    assert (
        nearest_folder(Path("out/crossdataset/imagenet/MPL/a_16shots/seed1")) == tree / "imagenet/MPL/a_16shots/seed1"
    )


def test_without_a_near_folder_the_existing_part_is_named(tree):
    asked = tree / "x/y/z/1/2"
    assert what_exists(asked) == f"its path exists up to {tree}, which holds evaluation, imagenet"
    with pytest.raises(UsageError, match=f"no folder {asked}: its path exists up to {tree}, .*; check it"):
        check_folder(asked, "no folder", "check it")
    assert what_exists(tree / "elsewhere") == f"its path exists up to {tree}, which holds evaluation, imagenet"
    assert what_exists(Path("/nope/*/[")) == "its path exists up to /"


def test_folder_with_pattern_characters(tmp_path):
    (tmp_path / "a[1]/b/seed1").mkdir(parents=True)
    assert nearest_folder(tmp_path / "a[1]/b/seed2") == tmp_path / "a[1]/b/seed1"


def test_missing_epoch_lists_those_there(refused, eurosat, deep, finished, tmp_path):
    options = ["--eval-only", "--model-dir", finished("CoOp"), "--load-epoch", 7]
    argv = arguments(eurosat, deep, tmp_path / "out", "TRAINER.NAME", "CoOp", options=options)
    refused(argv, "model.pth.tar-7: check --load-epoch (epochs there: 1)")


def test_missing_yaml_lists_those_there(refused, eurosat, tiny, tmp_path):
    for option, name, near in (
        ("--config-file", "configs/trainers/MPL/vit_b4_c1_add2.yaml", "did you mean vit_b4_c1_add2_rm1.yaml?"),
        ("--dataset-config-file", "configs/datasets/eurosatt.yaml", "did you mean eurosat.yaml?"),
    ):
        refused(arguments(eurosat, tiny, tmp_path / "out", options=[option, name]), f"no config file {name}: ", near)


def test_missing_data_is_reported_without_torch_with_a_command_to_type(script, tmp_path):
    """It took 13 s and 200 lines of settings."""
    ended, _ = script("mpl/base2new_train.sh", "eurosat", 1, DATA=tmp_path / "none", DRY_RUN="", BACKBONE="")
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    named = shlex.split(line.partition("get it by: ")[2])
    assert shutil.which(named[0], path=f"{os.environ['PATH']}:{ROOT}") or (ROOT / named[0]).exists()
    helped = subprocess.run([*named[:2], "--help"], cwd=ROOT, capture_output=True, text=True)
    assert helped.returncode == 0 and named[1:] == ["tools/prepare.py", "eurosat", "--root", str(tmp_path / "none")]
    argv = ["train.py", *arguments(tmp_path / "none", "small", tmp_path / "out")]
    code = f"import sys, train\nsys.argv = {argv}\ntry: train.main()\nexcept ValueError: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
