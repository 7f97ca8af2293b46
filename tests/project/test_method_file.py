"""`--plugin FILE`: a method outside the clone in every command, and its file is known by its
checksum.
"""

import json
import re
import shlex
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import pytest
import yaml
from dassl.engine import TRAINER_REGISTRY
from marks import of_json
from method_checks import assert_method_works

from common.start import ROOT
from inference import calibrate_command as calibrate
from inference import export, predict
from inference.load import load
from inference.options import LoadOptions
from studies import command as study
from trainers import methods
from trainers.base import plugin
from trainers.base.plugin import load_method_file

METHOD = """
from dataclasses import dataclass
from dassl.engine import TRAINER_REGISTRY
from trainers.base.prompts import ContextSettings
from trainers.coop import CoOp

@dataclass(frozen=True)
class OwnSettings(ContextSettings):
    SCALE: float = 1.0

@TRAINER_REGISTRY.register()
class OwnContext(CoOp):
    Settings = OwnSettings
"""
YAML = {
    "_BASE_": str(ROOT / "configs/trainers/small.yaml"),
    "INPUT": {"SIZE": [32, 32]},
    "OPTIM": {"MAX_EPOCH": 1},
    "DATALOADER": {"NUM_WORKERS": 0},
    "TRAINER": {"OWNCONTEXT": {"PREC": "fp32", "N_CTX": 2}},
}


@contextmanager
def new_process():
    """Within it, methods are registered as in a new process; afterwards as before."""
    with ExitStack() as stack:
        for names in (TRAINER_REGISTRY._obj_map, plugin.MAKERS, plugin.LOADED):
            stack.enter_context(patch.dict(names))
        yield
    for name in [name for name in sys.modules if name.startswith("plugin_")]:
        del sys.modules[name]  # not those of packages, which cannot be imported twice


@pytest.fixture
def own(tmp_path):
    """A file with a method, and its YAML file beside it."""
    file = tmp_path / "my code" / "own_context.py"
    (file.parent / "OwnContext").mkdir(parents=True)
    file.write_text(METHOD)
    (file.parent / "OwnContext/mine.yaml").write_text(yaml.safe_dump(YAML))
    return file


FAULTS = {  # content of the file -> words of the line
    "def f(:": "SyntaxError: invalid syntax, line 1",
    "\0": "null bytes",
    "import nothing_of_this_name": "ModuleNotFoundError: No module named 'nothing_of_this_name', "
    "line 1",
    "import sys\nsys.exit(3)": "SystemExit: 3, line 2",
    "x = 1": "registers no method: write @TRAINER_REGISTRY.register()",
    METHOD.replace("OwnContext", "CoOp"): '"CoOp" is already registered',
    METHOD.replace("OwnContext", "CoOp").replace(
        "register()", "register(force=True)"
    ): "registers CoOp, which exists",
    "from trainers.base.plugin import plugin\nplugin('DePT')(print)": "registers DePT+, which "
    "exists already",
}


@pytest.mark.parametrize("content", [None, *FAULTS])
def test_unusable_file_is_refused_in_a_line(content, launch, argv, tmp_path):
    file = tmp_path / "own.py"
    names = TRAINER_REGISTRY._obj_map | plugin.MAKERS
    if content is not None:
        file.write_text(content)
    done = launch(*argv("CoOp", options=["--plugin", file]))
    assert str(file) in done.error and FAULTS.get(content, "check the path") in done.error
    assert names == TRAINER_REGISTRY._obj_map | plugin.MAKERS and not plugin.LOADED
    assert not (tmp_path / "out").exists()


def test_a_method_outside_the_clone_trains_resumes_predicts_and_is_known_by_its_checksum(
    own, launch, command, script, eurosat, tiny, tmp_path
):
    given = ["--plugin", own]
    content = {
        "trainers": {"OwnContext": "mine", "CoOp": "small"},
        "datasets": ["eurosat"],
        "seeds": [1],
        "shots": [2],
    }
    file = tmp_path / "study.yaml"
    file.write_text(
        yaml.safe_dump(
            content | {"root": str(eurosat), "output": str(tmp_path), "backbone": str(tiny)}
        )
    )
    with new_process():
        planned = command.works(study, "run", file, "--dry-run", *given)
        _, (call,) = script("any/base2new_train.sh", "owncontext", "eurosat", 1, PLUGIN=own)
        assert call[call.index("--plugin") + 1] == str(own)
    words = next(line for line in planned.printed.splitlines() if "OwnContext" in line).split(
        "train.py "
    )[1]
    arguments = shlex.split(words)
    assert all(
        ("--plugin" in line) == ("OwnContext" in line) for line in planned.printed.splitlines()
    )
    with new_process():  # as in a process of the study
        done = launch.works(*arguments)
        assert f"IMAGES --plugin {shlex.quote(str(own))}" in done.printed
        assert {"OwnContext", "DePT+OwnContext"} <= methods().keys()
    run = tmp_path / arguments[arguments.index("--output-dir") + 1]
    results = of_json(run / "results.json")
    assert results["trainer"] == "OwnContext" and len(results["plugin_sha256"]) == 64
    assert (
        yaml.safe_load((run / "config.yaml").read_text())["MODEL"]["PLUGIN_SHA256"]
        == results["plugin_sha256"]
    )
    images = eurosat / "eurosat"
    assert "needs --plugin FILE" in command(predict, run, images).error
    with new_process():
        command.works(export, run, "--to", tmp_path / "exported", *given)
        for model in (run, tmp_path / "exported"):
            done = command(predict, model, images, "--json", "--backbone", tiny, *given)
            assert (done.status, done.errors) == (0, [])
            assert len(json.loads(done.printed)) > 10
        command.works(calibrate, run, *given)
    with new_process():
        assert load(run, LoadOptions(plugin=[own])).method == "OwnContext"
        elsewhere = [tmp_path / "tested" if word == str(run) else word for word in arguments]
        tested = launch.works("--eval-only", "--model-dir", run, *elsewhere)
        assert "another version" not in tested.printed
    own.write_text(METHOD + "# corrected\n")
    with new_process():
        assert "another version of the file of --plugin" in launch(*arguments).error
        done = command.works(predict, tmp_path / "exported", images, "--backbone", tiny, *given)
        assert "its file has changed" in done.errors[0]
        own.write_text(METHOD)
        assert (
            "has changed since this command has started"
            in command(predict, run, images, *given).error
        )


def test_no_yaml_file_names_code_to_run(own, launch, argv, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(YAML | {"PLUGIN": str(own)}))
    assert (
        "unknown config key PLUGIN" in launch(*argv("CoOp", options=["--config-file", file])).error
    )


# The examples of docs/add_a_method.md work as they are written, in a folder outside the clone.

PAGE = (ROOT / "docs/add_a_method.md").read_text()
FILES = dict(re.findall(r"```(?:python|yaml)\n# (mine/[\w./]+)\n(.*?)```", PAGE, re.DOTALL))
EXAMPLES = {  # file -> the method that it registers, and settings
    "growing": ("Growing", {"DEPTH": 2}),
    "bottleneck": ("Bottleneck", {}),
    "class_means": ("ClassMeans", {}),
    "mean_of_views": ("MeanOfViews", {"VIEWS": 4}),
    "near_teacher": ("NearTeacher", {"W": 2}),
    "smooth": ("Smooth+CoOp", {"SMOOTHING": 0.2, "N_CTX": 2}),
}


def test_every_block_of_the_page_runs_here_or_in_test_docs():
    assert sorted(FILES) == sorted(
        [
            "mine/Growing/small.yaml",
            "mine/test_growing.py",
            *(f"mine/{name}.py" for name in EXAMPLES),
        ]
    )
    # The other blocks: commands, and a diagram
    assert PAGE.count("```") == 2 * (len(FILES) + 2) and len(PAGE.splitlines()) <= 325


@pytest.mark.thorough
def test_the_test_of_the_page_runs_in_a_folder_of_its_own(tmp_path):
    for name in ("growing", "test_growing"):
        (tmp_path / f"{name}.py").write_text(FILES[f"mine/{name}.py"])
    command = [sys.executable, "-m", "pytest", "-q", "-c", ROOT / "pyproject.toml", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout


def check_example(files, file, tmp_path):
    name, settings = EXAMPLES[file]
    path = tmp_path / f"{file}.py"
    path.write_text(files[f"mine/{file}.py"])
    with new_process():
        load_method_file(path)
        assert_method_works(name, **settings)
        assert methods()[name].plugin_file == str(path)


@pytest.mark.parametrize("file", EXAMPLES)
def test_example_works(file, tmp_path):
    check_example(FILES, file, tmp_path)
