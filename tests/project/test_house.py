"""The layout of the project: folders, the registry, and what trainers and datasets may use of
Dassl.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from unittest.mock import MagicMock

import marks
import pytest
from marks import golden_files

import trainers
from common.start import ROOT
from configs.recipes import recipe


def imports(file: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of everything that a file imports from elsewhere."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


def files(*folders: str) -> list[Path]:
    return [file for folder in folders for file in (ROOT / folder).rglob("*.py")]


PUBLISHED = {  # names of the published Dassl 0.6.3
    "dassl.config": "clean_cfg get_cfg_default",
    "dassl.data": "transforms",
    "dassl.data.datasets": "DATASET_REGISTRY DatasetBase Datum build_dataset",
    "dassl.engine": "TRAINER_REGISTRY TrainerX build_trainer",
    "dassl.metrics": "compute_accuracy",
    "dassl.optim": "build_lr_scheduler build_optimizer",
    "dassl.utils": "count_num_param load_checkpoint load_pretrained_weights read_image "
    "set_random_seed",
}


def test_methods_and_datasets_import_names_of_the_published_dassl():
    used = [
        (file.name, module, name)
        for file in files("trainers", "datasets")
        for module, name in imports(file)
        if module.partition(".")[0] == "dassl"
    ]
    assert used
    assert [entry for entry in used if entry[2] not in PUBLISHED.get(entry[1], "").split()] == []


def read_of(folder: Path, monkeypatch) -> set[str]:
    """The golden files of a folder that some test reads, without `.json`."""
    of_toolbox = "".join(file.read_text() for file in files("toolbox/tests"))
    read = {file.stem for file in folder.glob("*.json") if f'"{file.name}"' in of_toolbox}

    def recorded(*args):
        found = golden_files(*args)
        read.update(found)
        return found

    monkeypatch.setattr(marks, "golden_files", recorded)
    for file in files("tests"):
        text = file.read_text()
        if re.search(r"^from marks import .*\bgolden(_cases)?\b", text, re.M):
            arguments = " ".join(re.findall(r"^def \w+\((.*)\):", text, re.M))
            metafunc = MagicMock(fixturenames=re.findall(r"\w+", arguments))
            metafunc.config.getoption.return_value = folder
            monkeypatch.syspath_prepend(file.parent)
            import_module(file.stem).pytest_generate_tests(metafunc)
    return read


def test_each_golden_file_is_read_by_its_content(tmp_path, monkeypatch):
    names = {file.stem for file in (ROOT / "tests/golden").glob("*.json")}
    assert names - read_of(ROOT / "tests/golden", monkeypatch) == set(), "no test reads these files"
    (tmp_path / "x_conformal.json").write_text('{"conformal": [{"seed": 1}]}')
    (tmp_path / "conformal.json").write_text('{"other": []}')
    assert read_of(tmp_path, monkeypatch) == {"x_conformal"}


def test_a_method_imports_at_most_its_base_method():
    own = {Path(sys.modules[method.__module__].__file__) for method in trainers.methods().values()}
    names = {file.stem for file in own}
    for file in own:
        tree = ast.parse(file.read_text())
        near = {
            node.module
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.level == 1
        }
        assert len(near & names) <= 1, file


def test_steps_of_a_run_name_what_there_is():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for file, names in re.findall(r"`([\w/]+\.py)`((?:,? (?:and )?`\w+`)+)", text):
        tree = ast.parse((ROOT / file).read_text())
        known = {getattr(node, "name", "") for node in ast.walk(tree)}
        assert set(re.findall(r"`(\w+)`", names)) <= known, file


def test_every_method_has_a_yaml_for_each_protocol():
    for method, found in trainers.methods().items():
        for protocol in ("base2new", "few_shot", "cross_dataset") if found.learns else ():
            folder = ROOT / "configs/trainers" / (found.config_folder or method)
            assert (folder / f"{recipe(method, protocol).cfg}.yaml").is_file() and (
                folder / "small.yaml"
            ).is_file()


# Commands


@pytest.mark.parametrize("tool", ["train.py", "tools/study", "tools/predict ."])
def test_tool_without_its_packages_names_the_command_to_install_them(tool, tmp_path):
    """An interpreter without site-packages is like one outside the environment."""
    name, *arguments = tool.split()
    command = [sys.executable, "-S", ROOT / f"{name.removesuffix('.py')}.py", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the package ") and "`pip install -r requirements.txt`" in line


# The Dockerfile, as far as it can be checked without Docker: its files exist, and its command runs
# from them alone.

DOCKERFILE = (ROOT / "Dockerfile").read_text()
LINES = re.sub(r"\\\n\s*", "", DOCKERFILE).splitlines()


def copied() -> list[str]:
    return [name for line in LINES if line.startswith("COPY ") for name in line.split()[1:-1]]


def test_files_exist_and_docker_does_not_ignore_them():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*" and "tools" in copied()
    for name in copied():
        assert (ROOT / name).exists()
        assert f"!{name}" in ignored or re.match(r"requirements.*\.txt", name), name
    assert (
        ROOT.joinpath("requirements-serve.txt").read_text().splitlines()[1]
        == "-r requirements-api.txt"
    )
    for name in re.findall(r"-r (\S+)", DOCKERFILE):
        assert name in copied()
