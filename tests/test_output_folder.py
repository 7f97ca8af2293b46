"""The output folder while a run starts: a failing start removes its own files and nothing else.

A second run in the same folder is tested in test_lock.py.
"""

import sys

import pytest
from yacs.config import CfgNode

from experiments.output_folder import claimed


def write(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


@pytest.mark.parametrize("earlier", [(), ("log.txt", "config.yaml")])
@pytest.mark.parametrize("meanwhile", [(), ("prompt_learner/model.pth.tar-1", "log.txt-2026")])
def test_failing_start_keeps_what_others_write(earlier, meanwhile, tmp_path):
    write(tmp_path / "a/run", earlier)
    before = sys.stdout
    with pytest.raises(RuntimeError), claimed(tmp_path / "a/run") as folder, folder.start(CfgNode()):
        assert sys.stdout is not before
        write(tmp_path / "a/run", meanwhile)
        raise RuntimeError
    assert sys.stdout is before
    left = {path.relative_to(tmp_path / "a/run").as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*earlier, *meanwhile} and (left or not any(tmp_path.iterdir()))


def test_results_are_deleted_as_files_and_a_partial_test_as_a_folder(tmp_path):
    write(tmp_path / "run", ["results.json/kept", "partial_test/1.safetensors"])
    with claimed(tmp_path / "run") as folder:
        folder.remove_partial_test()
        with pytest.raises(OSError):
            folder.remove("predictions.npz", "results.json")
    assert [path.name for path in (tmp_path / "run").rglob("*") if path.is_file()] == ["kept"]
