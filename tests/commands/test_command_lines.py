"""The arguments of the commands, removed options, and how fast the commands start."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY, TrainerX
from marks import one_line

from common.errors import UsageError, check_name
from common.removed import REMOVED
from common.start import ROOT, Parser
from fit import command as fit
from inference import calibrate_command as calibrate
from inference import embed, predict
from inference.description import configuration
from inference.serving import command as serving
from studies.study import Variant


@pytest.mark.parametrize(
    ("command", "name", "options"),
    [
        (embed, "paths", ["--to", "new"]),
        (calibrate, "models", []),
        (serving, "models", []),
    ],
)
def test_options_may_stand_between_paths(command, name, options):
    """As in predict: the second path was an "unrecognized argument"."""
    args = command.parse(["one", "--backbone", "small", "two", *options])
    assert [str(path) for path in getattr(args, name)] == ["one", "two"]


def test_the_old_word_of_an_option_works_and_says_the_new_one(capsys):
    args = predict.parse(["photos", "--together=ZLaP"])
    assert args.transductive == "ZLaP"
    assert "--together is called --transductive now" in capsys.readouterr().err
    request = fit.parse(["photos", "--to", "model", "--coverage-by", "class"])
    assert request.coverage == "per-class"


@pytest.mark.parametrize("command", [predict, embed])
def test_a_missing_image_is_not_a_run(command):
    """The remedy was the output folder of a run."""
    to = ["--to", "new"] if command is embed else ["--classes", "robin", "wren"]
    with one_line("no model or image at photo.jpg: check the path"):
        command.main(["photo.jpg", "--backbone", "small", *to])


def test_a_trainer_of_dassl_alone_is_named(monkeypatch):
    """A user's own TrainerX was "no method", with a list of a hundred known ones and the advice to
    give --plugin, which had been given.
    """
    plain = type("PlainX", (TrainerX,), {})
    monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "PlainX", plain)
    words = "PlainX is a trainer of Dassl, not a method of this project", "train.py"
    with one_line("runs/1/config.yaml: ", *words):
        configuration("PlainX", Path("runs/1/config.yaml"))
    with one_line(*words):
        Variant("mine", "PlainX")


@pytest.fixture(autouse=True)
def _removed(monkeypatch):
    words = {"--old": "use --new", "--rule old": "use new", "OLD": "use NEW"}
    monkeypatch.setattr("common.removed.REMOVED", words)


@pytest.mark.parametrize(
    ("words", "line"),
    {
        "--old 3": "error: unrecognized arguments: --old 3: --old was removed: use --new\n",
        "--rule old": "--rule old was removed: use new\n",
    }.items(),
)
def test_removed_option_is_answered_with_what_to_do_instead(words, line, capsys):
    parser = Parser()
    parser.add_argument("--new", "--old-time")
    parser.add_argument("--rule", choices=["new"])
    with pytest.raises(SystemExit) as end:
        parser.parse_args(words.split())
    assert end.value.code == 2
    assert capsys.readouterr().err.endswith(line)


@pytest.mark.parametrize("key", ("OLD", "TEST.OLD"))
def test_removed_setting_is_answered_with_what_to_do_instead(key):
    with pytest.raises(UsageError, match=f"unknown config key {key}; {key} was removed: use NEW"):
        get_cfg_default().merge_from_list([key, 1])


def test_removed_key_of_a_study_is_answered_with_what_to_do_instead():
    with pytest.raises(UsageError, match="there is no key 'OLD': OLD was removed: use NEW"):
        check_name("OLD", ["OLDER"], "key")


def test_table_of_removed_words_stays_small():
    assert len(" ".join((*REMOVED, *REMOVED.values()))) < 3000


QUICK = """
import json, sys
from contextlib import suppress
from importlib import import_module
from runs.session import run_command
_, name, calls = sys.argv
main = import_module(name).main
for sys.argv[1:] in json.loads(calls):
    with suppress(SystemExit):
        run_command(main)
slow = {"torch", "torchvision", "open_clip", "scipy", "sklearn", "pandas", "matplotlib"} & set(sys.modules)
sys.exit(f"imported: {slow}" if slow else 0)
"""
STUDIES = ("studies.demo", "studies.command", "studies.reproduce")
COMMANDS = (
    *STUDIES,
    "studies.compare",
    "inference.inspection.command",
)
COMMANDS += (
    "fit.label.command",
    "inference.embed",
    "inference.export",
    "inference.predict",
    "inference.serving.command",
    "datasets.preparing.command",
    "fit.command",
    "measures.results",
    "inference.calibrate_command",
)


def quick(module, *calls):
    """(stdout, lines of stderr) of a module's `main`, called with these arguments in a process of
    its own.

    Nothing that takes seconds may be imported there.
    """
    argv = [sys.executable, "-c", QUICK, module, json.dumps(calls, default=str)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr.splitlines()


@pytest.mark.parametrize("module", COMMANDS)
def test_help_and_misspelt_options_import_nothing_slow(module):
    printed, (error,) = quick(module, ["--help"], ["--debugg"])
    assert "--debug" in printed and error.startswith("error: ")


MISSING = [
    ([], "--trainer is missing: see python train.py --help"),
    (["--trainer", "CoOp"], "--dataset-config-file is missing"),
    (["--trainer", "CoOp", "DATASET.NAME", "EuroSAT"], "--root is missing"),
    (
        ["--trainer", "CoOp", "--config-file", "configs/nowhere.yaml"],
        "there is no config file configs/nowhere.yaml",
    ),
    # Of two seeds it would take one
    (
        ["--se", "1", "2"],
        "unrecognized arguments: --se: did you mean --seed?",
    ),
    (["--a\nb"], "unrecognized arguments: --a\\nb"),
]


def test_train_names_what_is_missing_without_torch():
    _, errors = quick("train", *(argv for argv, _ in MISSING))
    for error, (argv, words) in zip(errors, MISSING, strict=True):
        assert error.startswith(f"error: {words}"), argv


@pytest.mark.parametrize(
    "command",
    [
        "predict MODEL",
        "export MODEL --to a",
        "embed MODEL --to a",
        "inspection.command MODEL --output a",
        "serving.command MODEL",
    ],
)
def test_missing_model_is_named_without_torch(command, tmp_path):
    module, *argv = command.replace("MODEL", str(tmp_path / "run")).split()
    _, errors = quick(f"inference.{module}", argv)
    assert errors[0].startswith(f"error: no model at {tmp_path}/run: give a folder of fit.py")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("mpl pre", ["predict", "prepare"]),
        ("mpl predict MODEL --format j", ["json", "jsonl"]),
        ("mpl fit --max-e", ["--max-error"]),
        ("mpl inspect predictions --o", ["--output"]),
        ("mpl study ru", ["run"]),
    ],
)
def test_a_shell_completes_commands_and_options(line, words, tmp_path):
    pytest.importorskip("argcomplete", reason="completion needs argcomplete")
    asked = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    asked |= {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n"}
    asked["_ARGCOMPLETE_STDOUT_FILENAME"] = str(tmp_path / "words")
    done = subprocess.run(
        [sys.executable, "tools/mpl.py"], cwd=ROOT, env=os.environ | asked, capture_output=True
    )
    assert done.returncode == 0 and not done.stdout, done.stderr
    assert (tmp_path / "words").read_text().split() == words


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        pytest.param("trainers", "scipy sklearn pandas matplotlib", marks=pytest.mark.thorough),
        ("train", "tqdm common.records inference.options"),
    ],
)
def test_an_import_waits_for_what_it_needs_alone(module, unwanted):
    slow = {*unwanted.split()}
    code = f"import sys, {module}; print(sorted({slow} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_a_list_of_text_is_read_without_pyarrow(tmp_path):
    (tmp_path / "list.txt").write_text("a.jpg\n")
    (tmp_path / "list.csv").write_text("path\na.jpg\n")
    code = """
import sys; sys.modules["pyarrow"] = None
from pathlib import Path; from inference.sources import images_in
print([str(one) for one in images_in([Path("list.txt"), Path("list.csv")])])
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "['a.jpg', 'a.jpg']\n", done.stderr
