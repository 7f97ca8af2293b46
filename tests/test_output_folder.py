"""The output folder while a run starts: a failing start removes its own files and nothing else.

A second run in the same folder is tested in test_lock.py.
"""

import pytest

from experiments.lock import locked
from experiments.output_folder import output_folder, restored_stdout


@pytest.fixture(autouse=True)
def _stdout():
    with restored_stdout():
        yield


def fail(folder, meanwhile=lambda: None):
    with pytest.raises(RuntimeError), locked(folder), output_folder(folder) as started:
        started.start_log()
        meanwhile()
        raise RuntimeError


def test_failing_start_leaves_no_folder(tmp_path):
    fail(tmp_path / "a/b/run")
    assert list(tmp_path.iterdir()) == []


def test_failing_start_keeps_the_files_of_another_process(tmp_path):
    run = tmp_path / "a/run"

    def other_run_starts():
        (run / "prompt_learner").mkdir()
        (run / "prompt_learner/model.pth.tar-1").write_text("prompts")
        (run / "log.txt-2026").write_text("log")

    fail(run, other_run_starts)
    assert sorted(path.name for path in run.rglob("*")) == ["log.txt-2026", "model.pth.tar-1", "prompt_learner"]


def test_failing_start_keeps_an_earlier_run(tmp_path):
    (tmp_path / "log.txt").write_text("earlier")
    (tmp_path / "config.yaml").write_text("earlier")
    fail(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "log.txt": "earlier",
        "config.yaml": "earlier",
    }
