"""The output folder while a run starts: a failing start removes its own files and nothing else.

A second run in the same folder is tested in test_lock.py.
"""

import sys

import pytest
from yacs.config import CfgNode

from experiments.output_folder import claimed


def fail(path, meanwhile=lambda: None):
    before = sys.stdout
    with pytest.raises(RuntimeError), claimed(path) as folder, folder.start(CfgNode()):
        assert sys.stdout is not before
        meanwhile()
        raise RuntimeError
    assert sys.stdout is before


def test_failing_start_leaves_no_folder(tmp_path):
    fail(tmp_path / "a/b/run")
    assert list(tmp_path.iterdir()) == []


def test_failing_start_keeps_what_others_have_written_before_and_meanwhile(tmp_path):
    earlier, meanwhile = ("log.txt", "config.yaml"), ("prompt_learner/model.pth.tar-1", "log.txt-2026")
    (tmp_path / "prompt_learner").mkdir()

    def write(names):
        for name in names:
            (tmp_path / name).write_text(name)

    write(earlier)
    fail(tmp_path, lambda: write(meanwhile))
    found = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {name: name for name in earlier + meanwhile}
