"""The scripts: which runs they start, what users may give them, and that these runs finish.

tests/test_published_scripts.py compares the published ones with the facts.
"""

import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from drawn import run_for_real

from experiments.protocols import RECIPES
from experiments.scripts.table import ANY, SCRIPTS
from experiments.studies.reproduce import read_arguments

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
SMALL = ["INPUT.SIZE", "(32, 32)", "DATALOADER.NUM_WORKERS", "0"]
KINDS = {"base2new_train": "base2new", "base2new_test": "base2new", "xd_train": "cross_dataset"}
PROJECT = ("scripts", "configs", "tools", "experiments", "common", "clip", "datasets", "trainers")
KINDS |= {"xd_test": "cross_dataset", "few_shot": "few_shot"}


GROWING = """from dassl.engine import TRAINER_REGISTRY

from .base import PromptTrainer


@TRAINER_REGISTRY.register()
class Growing(PromptTrainer):
    pass
"""


def wrapper(name):
    return f'#!/usr/bin/env bash\nexec bash "$(dirname "$0")/{"../" * name.count("/")}run.sh" "$0" "$@"\n'


def option(call, key):
    return call[call.index(key) + 1] if key in call else None


def setting(call, key):
    """The value of the last KEY VALUE pair of a key."""
    return ([value for name, value in itertools.pairwise(call) if name == key] or [None])[-1]


def test_every_script_is_in_the_table_and_has_its_file():
    files = {file.relative_to(ROOT / "scripts").as_posix()[:-3]: file for file in (ROOT / "scripts").rglob("*.sh")}
    assert files.keys() == SCRIPTS.keys() | {"run"}
    assert {name: files[name].read_text() for name in SCRIPTS} == {name: wrapper(name) for name in SCRIPTS}


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    files = sorted(map(str, (ROOT / "scripts").rglob("*.sh")))
    checked = subprocess.run(["shellcheck", *files], capture_output=True, text=True)
    assert (checked.returncode, checked.stdout) == (0, "")


def test_scripts_use_nothing_newer_than_bash_3_2():
    """macOS has that version: no ${name,,}, no associative arrays, no mapfile, no realpath of GNU."""
    text = (ROOT / "scripts/run.sh").read_text()
    assert not re.search(r"\$\{\w+(,,|\^\^|@)|declare -A|local -n|mapfile|readarray|&>>|\|&|realpath|readlink", text)


@pytest.mark.parametrize("posix", [False, True])
def test_script_in_a_path_with_a_space_started_from_another_folder(posix, python, tmp_path):
    place = tmp_path / "my projects/clone"
    for folder in PROJECT:
        shutil.copytree(ROOT / folder, place / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shell = ["bash", *(["--posix"] if posix else []), "my projects/clone/scripts/mpl/base2new_train.sh"]
    env = os.environ | {"PYTHON": str(python), "DRY_RUN": "1", "DATA": "my data", "OUT": ""}
    ended = subprocess.run([*shell, "eurosat", "1"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    start, call = map(shlex.split, ended.stdout.splitlines())
    assert start == ["cd", str(place)]
    assert option(call, "--root") == str(tmp_path / "my data")  # the user's path
    assert option(call, "--output-dir") == "output/base2new/train_base/eurosat/shots_16/MPL/vit_b4_c1_add2_rm1/seed1"


def test_without_a_python_it_says_what_to_do(script):
    ended, _ = script("mpl/base2new_train.sh", "eurosat", 1, PYTHON="no-python")
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: there is no no-python: run `make setup` in ")


# ---------------------------------------------------------------- what they start


@pytest.mark.parametrize("method", [method for method in RECIPES if method != "ZeroshotCLIP"])
def test_any_method_uses_its_recipes(method, script):
    for kind, protocol in KINDS.items():
        ended, calls = script(f"any/{kind}.sh", method.lower(), "ucf101", "2 5", 3, "OPTIM.LR", 0.1, BACKBONE="")
        assert ended.returncode == 0, ended.stderr
        shots = [1, 2, 4, 8, 16] if protocol == "few_shot" else [16]
        expected = []
        for seed, number in itertools.product(["2", "5"], shots):
            fitting = [each for each in RECIPES[method][protocol] if each.fits("ucf101", number)]
            source = [each for each in RECIPES[method][protocol] if each.fits("imagenet", number)]
            recipe = (source if kind == "xd_test" else fitting)[0]
            expected.append((method, seed, str(number), f"{recipe.cfg}.yaml", recipe.settings))
        found = []
        for call, (*_, settings) in zip(calls, expected, strict=True):
            has = all(setting(call, key) == value for key, value in zip(settings[::2], settings[1::2], strict=True)
                      if key != "OPTIM.MAX_EPOCH")  # fmt: skip
            name = Path(option(call, "--config-file")).name
            facts = (option(call, "--trainer"), option(call, "--seed"), setting(call, "DATASET.NUM_SHOTS"), name)
            found.append((*facts, settings if has else "others"))
            assert setting(call, "OPTIM.LR") == "0.1"
            if kind.endswith("test"):
                assert option(call, "--load-epoch") == "3" and "--eval-only" in call
            else:
                assert setting(call, "OPTIM.MAX_EPOCH") == "3" and "--eval-only" not in call
        assert found == expected


@pytest.mark.parametrize("variables", [{}, {"BACKBONE": "small"}, {"CFG": "small"}], ids=["default", "backbone", "cfg"])
@pytest.mark.parametrize("folder", ["coop", "vpt", "ivlp", "maple", "promptsrc", "mpl", "growing"])
def test_methods_scripts_start_what_the_ones_for_any_method_start(folder, variables, script, growing):
    kinds = [kind for kind in KINDS if folder == "growing" or f"{folder}/{kind}" in SCRIPTS]
    for kind in kinds:
        if folder == "promptsrc" and kind == "few_shot":
            continue  # PromptSRC's own: DATASET SHOTS
        calls = []
        for name, method in ((f"any/{kind}.sh", [folder]), (f"{folder}/{kind}.sh", [])):
            given = {"SHOTS": 2, "SOURCE": "eurosat"} | variables
            root = growing if folder == "growing" else ROOT
            ended, found = script(name, *method, "eurosat", 2, 5, "OPTIM.LR", 0.1, root=root, **given)
            assert ended.returncode == 0, ended.stderr
            calls.append(found)
        assert calls[0] == calls[1]
        if variables and folder != "growing":
            cross = kind.startswith("xd") and "BACKBONE" in variables
            name = "small_cross_datasets" if cross else "small"
            assert {Path(option(call, "--config-file")).stem for call in calls[1]} == {name}


@pytest.fixture
def growing(tmp_path):
    """A copy of the project with a method Growing, whose scripts are copies of any/."""
    place = tmp_path / "clone"
    for folder in PROJECT:
        shutil.copytree(ROOT / folder, place / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (place / "trainers/growing.py").write_text(GROWING)
    (place / "configs/trainers/Growing").mkdir()
    (place / "configs/trainers/Growing/small.yaml").write_text("_BASE_: ../small.yaml\n")
    shutil.copytree(place / "scripts/mpl", place / "scripts/growing")
    return place


def test_yaml_file_of_a_new_method(growing, script):
    folder = growing / "configs/trainers/Growing"

    def chosen(kind, **variables):
        ended, calls = script(f"any/{kind}.sh", "GROWING", "eurosat", 1, root=growing, **{"SHOTS": 1} | variables)
        if ended.returncode == 0:
            (call,) = calls
            assert f"/Growing/{Path(option(call, '--config-file')).stem}" in option(call, "--output-dir")
            return Path(option(call, "--config-file")).stem
        assert (ended.returncode, calls) == (2, [])
        (line,) = ended.stderr.splitlines()
        return line

    train = ("base2new_train", "few_shot", "xd_train")
    assert [chosen(kind) for kind in train] == ["small"] * 3  # the only one
    (folder / "vit_b16.yaml").write_text("_BASE_: ../common.yaml\n")
    assert [chosen(kind) for kind in train] == ["vit_b16"] * 3  # the only one that is not for the small CLIP
    assert [chosen(kind, BACKBONE="small") for kind in train] == ["small"] * 3
    assert chosen("few_shot", CFG="small") == "small"
    (folder / "few_shot.yaml").write_text("_BASE_: ../common.yaml\n")
    assert chosen("few_shot") == "few_shot"  # named after the protocol
    line = chosen("base2new_train")
    assert line.startswith("error: Growing has 3 YAML files and none for base2new by default: choose one with CFG")
    assert "there is no YAML file configs/trainers/Growing 'vit_b61'" in chosen("base2new_train", CFG="vit_b61")


def test_coops_epochs_depend_on_the_number_of_images(script):
    for dataset, expected in (
        ("dtd", ["vit_b16_ep50", "vit_b16_ep100", "vit_b16_ep100", "vit_b16", "vit_b16"]),
        ("imagenet", ["vit_b16_ep50"] * 5),
    ):
        _, calls = script("coop/few_shot.sh", dataset, 1, BACKBONE="")
        assert [Path(option(call, "--config-file")).stem for call in calls] == expected


def test_published_epoch_is_loaded_with_the_published_yaml_file_only(script):
    name = "maple/base2new_test_maple.sh"
    for arguments, variables, epoch in (
        ([], {}, "5"),
        ([2], {}, "2"),
        ([], {"CFG": "small"}, None),
        ([], {"BACKBONE": "small"}, None),
        ([], {"CFG": "vit_b16_c2_ep5_batch4_2ctx"}, "5"),
    ):
        _, (call,) = script(name, "eurosat", 1, *arguments, **({"BACKBONE": ""} | variables))
        assert option(call, "--load-epoch") == epoch


def test_mpl_across_datasets_is_the_authors_and_the_other_file_is_one_variable_away(script):
    other = "vit_b4_c1_add2_rm1_cross_datasets"
    for variables, cfg, epochs in (({}, "vit_b4_c1_add2_rm1", "2"), ({"CFG": other}, other, None)):
        for kind in ("xd_train", "xd_test"):
            _, (call,) = script(f"mpl/{kind}.sh", "imagenet", 1, BACKBONE="", **variables)
            assert Path(option(call, "--config-file")).stem == cfg
            assert setting(call, "OPTIM.MAX_EPOCH") == epochs


@pytest.mark.parametrize("name", [name for name, script in SCRIPTS.items() if script.steps == "reproduce"])
def test_published_prompts_are_tested_by_their_published_command(name, script, eurosat, deep, tmp_path):
    arguments = ["maple", "base2new"] * (name == "any/reproduce")
    prompts = {"cross_dataset": "seed2", "few_shot": "2shot/seed1"}.get(SCRIPTS[name].protocol, "base/seed2")
    (tmp_path / "weights" / prompts / "x").mkdir(parents=True)
    (tmp_path / "weights" / prompts / "x/model.pth.tar-1").touch()
    ended, calls = script(f"{name}.sh", *arguments, "eurosat", 2, "weights", "--workers", 3)
    assert ended.returncode == 0, ended.stderr
    assert {option(call, "--model-dir") for call in calls} == {str(tmp_path / "weights" / prompts)}
    assert {option(call, "--root") for call in calls} == {str(eurosat)}
    assert all("--eval-only" in call and option(call, "--backbone") == str(deep) for call in calls)


def test_reproduce_tests_the_shots_that_are_asked_for():
    assert read_arguments(["MaPLe", "--checkpoints", "x", "--shots", "4"]).shots == 4
    assert read_arguments(["MaPLe", "--checkpoints", "x"]).shots is None


# ---------------------------------------------------------------- they finish


def test_base_to_new_by_mpls_scripts(script, launch, monkeypatch, tmp_path):
    given = ["eurosat", 3, 1, *SMALL]
    _, calls = script("mpl/base2new_train.sh", *given, SHOTS=2)
    (trained,) = run_for_real(launch, [call[1:] for call in calls], monkeypatch)
    _, calls = script("mpl/base2new_test.sh", *given, SHOTS=2)
    (tested,) = run_for_real(launch, [call[1:] for call in calls], monkeypatch)
    assert [(run["trainer"], run["classes"], run["n_test"], run["epochs"]) for run in (trained, tested)] == [
        ("MPL", "base", 12, 1),
        ("MPL", "new", 12, 1),
    ]
    ended, _ = script("mpl/base2new_test.sh", *given, SHOTS=2, DRY_RUN="")
    base, new = trained["accuracy"], tested["accuracy"]
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[0].startswith("Already done (delete ") and len(lines) == 4
    assert lines[1].startswith(f"MPL on EuroSAT 2 shots seed 3: {base:.2f}% on 12 test images of base classes")
    assert lines[-1] == f"Harmonic mean: {2 * base * new / (base + new) if base + new else 0:.2f}%"


def test_pair_of_scripts_that_trains_five_epochs_and_tests_the_second(script, launch, monkeypatch):
    """As published: xd_train_vpt.sh trains the 5 epochs of its YAML file, xd_test_vpt.sh loads epoch 2."""
    _, calls = script("vpt/xd_train_vpt.sh", "eurosat", 1, *SMALL, "TRAINER.VPT.PROMPT_DEPTH_VISION", 2, SHOTS=1)
    (trained,) = run_for_real(launch, [call[1:] for call in calls], monkeypatch)
    given = {"SHOTS": 1, "SOURCE": "eurosat"}
    _, calls = script("vpt/xd_test_vpt.sh", "eurosat", 1, *SMALL, "TRAINER.VPT.PROMPT_DEPTH_VISION", 2, **given)
    (tested,) = run_for_real(launch, [call[1:] for call in calls], monkeypatch)
    assert (trained["epochs"], tested["epochs"]) == (5, 2)


def test_coops_own_scripts(script, launch, monkeypatch):
    main = ["eurosat", "vit_b16_ep50", "middle", 4, 1, "True", "OPTIM.MAX_EPOCH", "1", *SMALL]
    _, calls = script("coop/main.sh", *main)
    trained = run_for_real(launch, [call[1:] for call in calls], monkeypatch)
    assert [run["seed"] for run in trained] == [1, 2, 3]
    variables = {"SHOTS": 1, "NCTX": 4, "CSC": "True", "CTP": "middle", "SOURCE": "eurosat"}
    _, calls = script("coop/eval.sh", "eurosat", "vit_b16_ep50", 1, *SMALL, **variables)
    tested = run_for_real(launch, [call[1:] for call in calls], monkeypatch)
    assert [run["accuracy"] for run in tested] == [run["accuracy"] for run in trained]


@pytest.mark.parametrize("name", ["zsclip", "coop", "mvlpt", "."])
def test_zero_shot(name, script, launch, monkeypatch):
    half = ["DATASET.SUBSAMPLE_CLASSES", "new"]
    _, (call,) = script(f"{name}/zeroshot.sh", "eurosat", "vit_b32", *half, *SMALL)
    assert option(call, "--output-dir").endswith("/out/ZeroshotCLIP/vit_b32/eurosat/new")
    assert (option(call, "--trainer"), option(call, "--seed")) == ("ZeroshotCLIP", None)
    if name == "zsclip":
        (run,) = run_for_real(launch, [call[1:]], monkeypatch)
        assert run["n_test"] == 12


def test_cross_dataset_scripts_for_real(script):
    variables = {"SHOTS": 1, "SOURCE": "eurosat", "OMP_NUM_THREADS": 1, "DRY_RUN": ""}
    for name in ("mpl/xd_train.sh", "mpl/xd_test.sh"):
        ended, _ = script(name, "eurosat", 1, 1, *SMALL, **variables)
        assert ended.returncode == 0, ended.stderr
        result = re.fullmatch(r"MPL on EuroSAT 1 shots seed 1: [\d.]+% on 24 test images of all classes", last(ended))
        assert result, last(ended)
    assert "Source and target are both eurosat: a rehearsal, no cross-dataset result" in ended.stdout
    again, _ = script("mpl/xd_test.sh", "eurosat", 1, 1, *SMALL, **variables)
    assert "Already done (delete" in again.stdout and last(again) == result[0]


def last(ended):
    return ended.stdout.splitlines()[-1]


def test_second_run_does_not_start_after_a_failed_one(script, tmp_path):
    ended, _ = script("coop/few_shot.sh", "eurosat", 1, 1, "OPTIM.LRR", 1, DRY_RUN="", SHOTS="1 2")
    assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to_group", [True, False])
def test_sigterm_ends_the_run_too(to_group, eurosat, deep, tmp_path):
    env = {"DATA": eurosat, "OUT": tmp_path / "out", "BACKBONE": deep, "PYTHON": sys.executable, "OMP_NUM_THREADS": 1}
    env = os.environ | {key: str(value) for key, value in env.items()}
    command = ["bash", f"{ROOT}/scripts/mpl/base2new_train.sh", "eurosat", "1", "500", *SMALL]
    with subprocess.Popen(
        command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        deadline = time.time() + 120
        while not list((tmp_path / "out").rglob("model.pth.tar-*")) and time.time() < deadline:
            time.sleep(0.01)
        (os.killpg if to_group else os.kill)(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.split("\n")[-2:] == [
        "Interrupted. Run the same command again to resume from the last complete epoch.",
        "",
    ]


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_too_few_arguments(name, script, tmp_path):
    form = SCRIPTS[name].form.replace("[CFG]", "").split()
    if not form:
        return  # the published script takes none
    for given in ([], ["eurosat", "3", "1", "1", "1"][: len(form) - 1]):
        ended, calls = script(f"{name}.sh", *given)
        assert (ended.returncode, ended.stdout, calls) == (2, "", [])
        (line,) = ended.stderr.splitlines()
        assert line.startswith(f"error: {name}.sh takes {SCRIPTS[name].form} ")
    assert not (tmp_path / "out").exists()


def test_help_says_whose_script_it_is(script):
    ended, _ = script("promptsrc/few_shot.sh", "--help")
    first, does, whose, note, *_ = ended.stdout.splitlines()
    assert first == "bash scripts/promptsrc/few_shot.sh DATASET SHOTS [EPOCHS] [KEY VALUE ...]"
    assert "PromptSRC's repository" in whose and "scripts/any/few_shot.sh PromptSRC" in note


WRONG = [  # script, arguments, words of the line
    ("mpl/base2new_train", ["eurosatt", 1], "there is no dataset 'eurosatt': did you mean eurosat?"),
    ("mpl/base2new_train", ["eurosat", "one"], "SEED is 'one': give an integer below 10^9, or several"),
    ("mpl/base2new_train", ["eurosat", -1], "SEED is '-1'"),
    ("mpl/base2new_train", ["eurosat", 1, 0], "EPOCHS is '0': give an integer from 1 on"),
    ("mpl/base2new_train", ["eurosat", 1, "OPTIM.LR"], "'OPTIM.LR' is not KEY VALUE ..."),
    ("mpl/base2new_train", ["eurosat", 1, "--seed", 3], "'--seed 3' is not KEY VALUE ..."),
    ("promptsrc/few_shot", ["eurosat", "many"], "SHOTS is 'many': give an integer"),
    ("coop/main", ["eurosat", "vit_b16", "top", 16, 1, "False"], "CTP is 'top': give end, middle or front"),
    ("coop/main", ["eurosat", "vit_b16", "end", 16, 1, "no"], "CSC is 'no': give True or False"),
    ("coop/main", ["eurosat", "vit_b61", "end", 16, 1, "True"], "there is no YAML file configs/trainers/CoOp"),
    ("base2new_train", ["eurosat", "x"], "WEIGHT is 'x': give a number"),
    ("base2new_train", ["MPL", "eurosat", 1], "with METHOD DATASET SEED: scripts/any/base2new_train.sh"),
    ("base2new_train", [], "TCP's: scripts/tcp/base2new_train.sh"),
    ("xd_train", ["MPL", "imagenet", 1], "with METHOD DATASET SEED: scripts/any/xd_train.sh"),
    ("cocoop/xd_train", ["imagenet", 1], "with DATASET SEED: scripts/any/xd_train.sh CoCoOp"),
    ("any/base2new_train", ["MPLL", "eurosat", 1], "there is no method 'MPLL': did you mean MPL?"),
    ("any/base2new_train", ["zeroshotclip", "eurosat", 1], "use scripts/zsclip/zeroshot.sh DATASET"),
    ("any/reproduce", ["MaPLe", "xd", "eurosat", 1, "w"], "PROTOCOL is 'xd': give one of base2new"),
]


@pytest.mark.parametrize(("name", "arguments", "words"), WRONG)
def test_wrong_argument_is_one_line_with_the_usage(name, arguments, words, script, tmp_path):
    ended, calls = script(f"{name}.sh", *arguments, BACKBONE="")
    assert (ended.returncode, ended.stdout, calls) == (2, "", [])
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ") and words in line
    assert f"{name}.sh takes {SCRIPTS[name].form}" in line or "YAML file" in line
    assert not (tmp_path / "out").exists()


def test_wrong_variables(script):
    for variables, words in (
        ({"SHOTS": "few"}, "SHOTS is 'few'"),
        ({"CFG": "vit_b61"}, "there is no YAML file configs/trainers/MPL"),
        ({"SOURCE": "imagenett"}, "did you mean imagenet?"),
    ):
        ended, _ = script("mpl/xd_test.sh", "eurosat", 1, **variables)
        (line,) = ended.stderr.splitlines()
        assert ended.returncode == 2 and words in line


@pytest.mark.parametrize("name", ["mpl/base2new_test", "mpl/xd_test", "coop/eval"])
def test_error_for_untrained_prompts_says_what_was_trained(name, script, tmp_path):
    folder, rest = {
        "mpl/base2new_test": ("/base2new/train_base/eurosat/shots_16/MPL/vit_b4_c1_add2_rm1", "seed2"),  # SEED differs
        "mpl/xd_test": ("/crossdataset", "eurosat/MPL/vit_b4_c1_add2_rm1_16shots/seed1"),  # SOURCE
        "coop/eval": ("", "eurosat/CoOp/vit_b16_16shots/nctx16_cscFalse_ctpend/seed1"),
    }[name]
    (tmp_path / f"out{folder}" / rest).mkdir(parents=True)
    ended, _ = script(f"{name}.sh", "eurosat", "vit_b16" if name == "coop/eval" else 1, DRY_RUN="")
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"error: no trained prompts in {tmp_path}/out/")
    there = f": its path exists up to {tmp_path}/out{folder}, which holds {rest.split('/')[0]}; train first, or check"
    assert there in line


@pytest.mark.parametrize("name", ["mpl/base2new_test", "any/xd_test", "maple/base2new_test"])
def test_unfinished_training_is_an_error(name, script, tmp_path):
    method = ["MPL"] * name.startswith("any")
    _, (call,) = script(f"{name}.sh", *method, "eurosat", 1)
    Path(option(call, "--model-dir")).mkdir(parents=True)
    ended, _ = script(f"{name}.sh", *method, "eurosat", 1, DRY_RUN="")
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: the training run in ") and "is not finished: finish it first" in line


@pytest.mark.parametrize("words", [[], ["--help"], ["/elsewhere/train.sh"]])
def test_command_without_a_script_of_the_project(words):
    ended = subprocess.run([sys.executable, ROOT / "tools/script.py", *words], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "") and " is not a script of this project" in ended.stderr


def test_script_of_no_method(growing, script):
    shutil.copytree(growing / "scripts/any", growing / "scripts/nothing")
    ended, _ = script("nothing/few_shot.sh", "eurosat", 1, root=growing)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: scripts/nothing/few_shot.sh is not a script of this project: ")


def test_folder_with_other_settings_is_refused_and_says_which(script, launch, monkeypatch):
    """A run of the time before its YAML file had the published values does not resume with others."""
    given = ["eurosat", 1, 1, *SMALL]
    _, calls = script("ivlp/base2new_train.sh", *given, "OPTIM.LR", 0.001, SHOTS=1)
    run_for_real(launch, [call[1:] for call in calls], monkeypatch)
    ended, _ = script("ivlp/base2new_train.sh", *given, SHOTS=1, DRY_RUN="")
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 2 and " holds a run with OPTIM.LR 0.001, this one has " in line


assert set(KINDS) == set(ANY)
