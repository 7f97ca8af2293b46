"""A copy of the project, as a reader has it, and commands in it."""

import os
import shutil
import subprocess

import pytest
from marks import files_of

from common.start import ROOT
from datasets.small_world import SmallLand


@pytest.fixture(scope="module")
def copy(drawn, tmp_path_factory):
    """A copy of the project with the images of SmallLand and the methods of docs/add_a_method.md,
    for short runs.
    """
    from running import copy_project  # a plugin, which pytest imports first

    root = tmp_path_factory.mktemp("fresh") / "project"
    SmallLand.prepare(drawn / "small_land")
    shutil.copytree(drawn / "small_land", root / "data/small_land")
    copy_project(root)
    for name, text in files_of(ROOT / "docs/add_a_method.md").items():
        assert not (root / name).exists()
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    settings = root / "configs/trainers/small.yaml"
    assert "MAX_EPOCH: 20" in settings.read_text()
    quick = settings.read_text().replace("MAX_EPOCH: 20", "MAX_EPOCH: 1")  # to save time
    settings.write_text(f"{quick}TEST:\n  MAX_IMAGES: 32\n")
    return root


@pytest.fixture(scope="module")
def call(copy, python):
    """`call("train.py", ..., SHOTS=1)` runs a command in the copy; it must succeed."""

    def call(*command: object, **variables: object) -> subprocess.CompletedProcess:
        env = os.environ | {"PYTHON": python, "BACKBONE": "small", "SHOTS": "2"}
        env |= {key: str(value) for key, value in variables.items()}
        program = python if str(command[0]).endswith(".py") else "bash"
        done = subprocess.run(
            [program, *map(str, command)], cwd=copy, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done

    return call
