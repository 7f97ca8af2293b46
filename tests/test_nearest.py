"""Errors about missing folders say what there is."""

import subprocess
import sys
from pathlib import Path

import pytest
from drawn import arguments

from common.errors import UsageError
from common.files import check_folder, what_exists
from common.start import ROOT


def test_missing_folder_says_what_is_there(tmp_path):
    (tmp_path / "output/imagenet").mkdir(parents=True)
    asked = tmp_path / "output/eurosat/MPL/seed1"
    assert what_exists(asked) == f"its path exists up to {tmp_path}/output, which holds imagenet"
    with pytest.raises(UsageError, match=f"no folder {asked}: its path exists up to {tmp_path}/output, .*; check it"):
        check_folder(asked, "no folder", "check it")
    assert what_exists(Path("/nope/*/[")) == "its path exists up to /"


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
    ended, _ = script("mpl/base2new_train.sh", "eurosat", 1, DATA=tmp_path / "none", DRY_RUN="", BACKBONE="")
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.endswith(f"get it by: python tools/prepare.py eurosat --root {tmp_path}/none")
    argv = ["train.py", *arguments(tmp_path / "none", "small", tmp_path / "out")]
    code = f"import sys, train\nsys.argv = {argv}\ntry: train.main()\nexcept ValueError: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
