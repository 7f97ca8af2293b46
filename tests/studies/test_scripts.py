"""The scripts: which runs they start, what users may give them, and that these runs finish.

test_published_scripts.py compares the published ones with the facts.
"""

import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from drawn import run_for_real
from marks import thorough_but

from common.start import ROOT
from configs.recipes import recipe
from studies.scripts import read_table, text

pytestmark = pytest.mark.slow

SMALL = ["INPUT.SIZE", "(32, 32)", "DATALOADER.NUM_WORKERS", "0"]
SCRIPTS = read_table()
ANY = {
    name[4:]: script
    for name, script in SCRIPTS.items()
    if name.startswith("any/") and script.protocol
}


def option(call, key):
    return call[call.index(key) + 1] if key in call else None


def setting(call, key):
    """The value of the last KEY VALUE pair of a key."""
    return ([value for name, value in itertools.pairwise(call) if name == key] or [None])[-1]


def yaml_file(call):
    return Path(option(call, "--config-file")).stem


def test_scripts_are_what_make_scripts_writes():
    folder = ROOT / "scripts"
    files = {file.relative_to(folder).as_posix()[:-3]: file for file in folder.rglob("*.sh")}
    start = files.pop("start")
    written = {name: text(name, script) for name, script in SCRIPTS.items()}
    assert {name: file.read_text() for name, file in files.items()} == written
    for file in (start, *files.values()):
        subprocess.run(["bash", "-n", file], check=True)


def test_script_in_a_path_with_a_space_started_from_another_folder(tmp_path):
    place = tmp_path / "my projects/clone"
    shutil.copytree(ROOT / "scripts", place / "scripts")
    command = ["bash", "--posix", "my projects/clone/scripts/mpl/base2new_train.sh", "eurosat", "1"]
    env = os.environ | {"PYTHON": "bash", "DRY_RUN": "1", "DATA": "my data", "OUT": ""}
    ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    start, call = map(shlex.split, ended.stdout.splitlines())
    assert start == ["cd", str(place)]
    assert option(call, "--root") == str(tmp_path / "my data")  # the user's path
    assert (
        option(call, "--output-dir")
        == "output/base2new/train_base/eurosat/shots_16/MPL/vit_b4_c1_add2_rm1/seed1"
    )


@pytest.mark.parametrize("wanted", ["1", ""])
def test_only_train_py_is_started_and_before_it_the_dataset_is_prepared_on_request(
    wanted, script, eurosat
):
    ended, _ = script(
        "mpl/base2new_train.sh", "dtd", "1 2", PYTHON="echo", DRY_RUN=0, PREPARE=wanted
    )
    first, *calls = ended.stdout.splitlines()
    if wanted:
        assert first == f"tools/prepare.py dtd --root {eurosat}"
    else:
        calls = [first, *calls]
    assert [call.split()[0] for call in calls] == ["train.py", "train.py"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_program_of_a_script_and_then_the_script(number, tmp_path):
    program = tmp_path / "program"
    program.write_text(
        "#!/bin/bash\ntrap 'echo ended; exit 130' INT TERM\necho started\nwhile :; do sleep 0.05; done\n"
    )
    program.chmod(0o755)
    command = ["bash", ROOT / "scripts/mpl/base2new_train.sh", "eurosat", "1 2"]
    with subprocess.Popen(
        command,
        env=os.environ | {"PYTHON": str(program)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as script:
        assert script.stdout.readline() == "started\n"
        if number == signal.SIGINT:  # as from a terminal
            os.killpg(script.pid, number)
        else:
            script.send_signal(number)
        assert script.stdout.readline() == "ended\n"
        # A shell that is not just waiting ends by the signal itself, which is 130 for its own shell
        assert script.wait(10) in (130, -signal.SIGINT)


# ---------------------------------------------------------------- the commands that they start


@pytest.mark.parametrize(
    "method",
    thorough_but(
        ("MPL", "GDA"),
        [
            "DePT+MPL",
            *(file.name for file in (ROOT / "configs/trainers").iterdir() if file.is_dir()),
        ],
    ),
)
def test_any_method_uses_its_recipes(method, script):
    for kind, shared in ANY.items():
        tests = kind.endswith(("test", "all"))
        shots = (1, 16) if kind == "few_shot" else (16,)
        variables = {"BACKBONE": "", "PYTHON": sys.executable, "SHOTS": " ".join(map(str, shots))}
        given = (method.lower(), "ucf101", "2 5", 3, "OPTIM.LR", 0.1)
        ended, calls = script(f"any/{kind}.sh", *given, **variables)
        assert ended.returncode == 0, ended.stderr
        source = "imagenet" if kind == "xd_test" else "ucf101"
        for call, (seed, number) in zip(calls, itertools.product("25", shots), strict=True):
            used = recipe(method, shared.protocol, source, number)
            expected = (method, seed, str(number), used.cfg)
            shown = (
                option(call, "--trainer"),
                option(call, "--seed"),
                setting(call, "DATASET.NUM_SHOTS"),
            )
            assert (*shown, yaml_file(call)) == expected
            given = {"OPTIM.LR": "0.1"} if tests else {"OPTIM.LR": "0.1", "OPTIM.MAX_EPOCH": "3"}
            settings = dict(zip(used.settings[::2], used.settings[1::2], strict=True)) | given
            assert {key: setting(call, key) for key in settings} == settings
            assert option(call, "--load-epoch") == ("3" if tests else None)
            assert ("--eval-only" in call) == tests


@pytest.mark.parametrize(
    ("arguments", "variables", "epoch"),
    [
        ([], {}, "5"),
        ([2], {}, "2"),
        ([], {"CFG": "small"}, None),
        ([], {"BACKBONE": "small"}, None),
        ([], {"CFG": "vit_b16_c2_ep5_batch4_2ctx"}, "5"),
    ],
)
def test_published_epoch_is_loaded_with_the_published_yaml_file_only(
    arguments, variables, epoch, script
):
    _, (call,) = script(
        "maple/base2new_test_maple.sh", "eurosat", 1, *arguments, **({"BACKBONE": ""} | variables)
    )
    assert option(call, "--load-epoch") == epoch


PAIRS = [  # scripts that train and that test these prompts, with their arguments
    ("mpl/base2new_train eurosat 1", "mpl/base2new_test eurosat 1"),
    ("any/base2new_train MaPLe eurosat 1", "any/base2new_all MaPLe eurosat 1"),
    ("vpt/xd_train_vpt eurosat 1", "vpt/xd_test_vpt dtd 1"),
    ("base2new_train eurosat 8.0", "base2new_test eurosat 8.0"),
    ("mpl/dev_train eurosat 1 7", "mpl/dev_test eurosat 1"),
    ("coop/main eurosat vit_b16_ep50 middle 4 1 True", "coop/eval dtd vit_b16_ep50"),
]


@pytest.mark.parametrize("pair", thorough_but(PAIRS[:1], PAIRS))
def test_prompts_are_tested_where_they_were_trained(pair, script):
    variables = {"SHOTS": 1, "NCTX": 4, "CSC": "True", "CTP": "middle", "SOURCE": "eurosat"}
    (train, *words), (test, *others) = map(str.split, pair)
    trained = script(f"{train}.sh", *words, **variables)[1]
    tested = script(f"{test}.sh", *others, **variables)[1]
    folders = [option(call, "--output-dir") for call in (*trained, *tested)]
    assert [option(call, "--model-dir") for call in tested] == folders[: len(tested)]
    assert len(set(folders)) == 2 * len(trained)


# ---------------------------------------------------------------- they finish


def test_base_to_new_by_mpls_scripts(script, launch, monkeypatch):
    given = ["eurosat", 3, 1, *SMALL]
    calls = [script(f"mpl/base2new_{part}.sh", *given, SHOTS=2)[1][0] for part in ("train", "test")]
    trained, tested = run_for_real(launch, [call[1:] for call in calls], monkeypatch)
    facts = [
        (run["trainer"], run["classes"], run["n_test"], run["epochs"]) for run in (trained, tested)
    ]
    assert facts == [("MPL", "base", 12, 1), ("MPL", "new", 12, 1)]
    ended, _ = script("mpl/base2new_test.sh", *given, SHOTS=2, DRY_RUN="")
    base = trained["accuracy"]
    new = tested["accuracy"]
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[0].startswith("Already done (delete ") and len(lines) == 4
    assert lines[1].startswith(
        f"MPL on EuroSAT 2 shots seed 3: {base:.2f}% on 12 test images of base classes"
    )
    assert lines[-1] == f"Harmonic mean: {2 * base * new / (base + new) if base + new else 0:.2f}%"


# ---------------------------------------------------------------- bad input


WRONG = [  # script, arguments, words of the line
    (
        "mpl/base2new_train",
        ["eurosatt", 1],
        "there is no config file configs/datasets/eurosatt.yaml: check the path; did you mean eur",
    ),
    (
        "mpl/base2new_train",
        ["eurosat", 1, "OUTPUT_DIR", "x"],
        "OUTPUT_DIR is among the KEY VALUE pairs: name",
    ),
    ("cocoop/xd_train", ["imagenet", 1], "with DATASET SEED: scripts/any/xd_train.sh CoCoOp"),
    ("any/base2new_train", ["mpll", "eurosat", 1], "there is no method 'mpll': did you mean MPL?"),
    ("mpl/base2new_train", ["eurosat", "1 x"], "SEED is '1 x': give an integer"),
    ("mpl/base2new_train", ["eurosat", ""], "takes DATASET SEED [EPOCHS], and got 2 of these: see"),
    ("mpl/few_shot", ["eurosat", 1, "--quiet"], "the option --quiet is among the KEY VALUE pairs"),
    # which train.py checks
    ("coop/main", ["eurosat", "vit_b16", "top", 16, 1, "False"], "CLASS_TOKEN_POSITION is 'top'"),
]


@pytest.mark.parametrize(("name", "arguments", "words"), WRONG)
def test_wrong_value_gives_one_line_and_leaves_nothing(name, arguments, words, script, tmp_path):
    ended, _ = script(f"{name}.sh", *arguments, DRY_RUN="")
    (line,) = (line for line in ended.stderr.splitlines() if not line.startswith("note: "))
    assert ended.returncode == 2 and line.startswith("error: ") and words in line
    assert not (tmp_path / "out").exists()
