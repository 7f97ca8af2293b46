"""The wheel: one import name, one command, and no file of the clone is read."""

import os
import shutil
import subprocess
import sys

import pytest
from marks import thorough_but
from PIL import Image
from running import copy_project

from common.renaming import NAMES, PACKAGE, renamed, with_commands
from common.start import ROOT
from tools.mpl import COMMANDS

pytestmark = pytest.mark.slow

OTHERS = ("clip", "datasets", "dassl", "common")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the installed package, beside others that have the names of our folders."""
    folder = tmp_path_factory.mktemp("installed")
    copy_project(folder / "clone", "tests/", "docs/")
    install = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, *install, folder / "site", folder / "clone"], env=environment, check=True
    )
    shutil.rmtree(folder / "clone")
    for name in OTHERS:
        (folder / "others" / name).mkdir(parents=True)
        (folder / "others" / name / "__init__.py").write_text("owner = 'another project'\n")
    return folder


@pytest.fixture
def installed(site, tmp_path):
    """`installed("fit", "photos", ...)` -> what the command has printed; in an empty folder, with
    these folders of other packages `beside`.
    """
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}

    def installed(*words, status=0, beside=("others",)):
        environment["PYTHONPATH"] = ":".join(str(site / name) for name in ("site", *beside))
        arguments = [sys.executable, *map(str, words)]
        if words[0] != "-c":
            arguments[1:1] = ["-m", PACKAGE]
        done = subprocess.run(
            arguments, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    return installed


PYTHON = """
import sys
import clip, datasets, dassl, common
import modular_prompt_learning
assert "torch" not in sys.modules
from modular_prompt_learning import Classifier, LoadOptions, load, trainers
assert callable(Classifier) and callable(load)
assert len(trainers.methods()) > 40
ours = [name for name in sys.modules if name.partition(".")[0] in {names}]
assert sorted(ours) == ["clip", "common", "dassl", "datasets"], ours
assert clip.owner == datasets.owner == dassl.owner == "another project"
"""


@pytest.mark.thorough
def test_python_finds_the_packages_of_others(installed):
    installed("-c", PYTHON.format(names=NAMES))


def test_only_one_name_is_installed(site):
    names = {path.name for path in (site / "site").iterdir()}
    assert {name for name in names if not name.endswith(".dist-info")} == {PACKAGE, "bin"}


@pytest.mark.parametrize("predicts", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_fit_of_a_folder_makes_a_model_for_predict(predicts, installed, tmp_path):
    colours = {"red": (220, 20, 20), "blue": (20, 20, 220), "green": (20, 180, 20)}
    for name, colour in colours.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(4):
            shade = tuple(max(0, value - 9 * number) for value in colour)
            Image.new("RGB", (64, 64), shade).save(tmp_path / f"photos/{name}/{number}.png")
    options = ["--backbone", "small", "--minutes", 0, "--methods", "GDA"]
    printed = installed("fit", "photos", "--to", "model", *options)
    assert "Written: model, with report.html" in printed
    assert "mpl predict model photo.jpg" in (tmp_path / "model/report.html").read_text()
    if predicts:
        assert "red" in installed("predict", "model", "photos/red", "--backbone", "small")


HELPED = [
    "fit",
    "predict",
    "embed",
    "calibrate",
    "export",
    "label",
    "serve",
    "inspect",
    "train",
    "study",
    "prepare",
    "compare",
]


@pytest.mark.parametrize("command", thorough_but(("fit", "label", "predict", "train"), HELPED))
def test_each_command_of_an_installation_has_its_help(command, installed):
    printed = installed(command, "--help")
    assert f"mpl {command}" in printed and "tools/" not in printed and "train.py" not in printed


def test_commands_name_themselves(installed):
    assert "  fit  " in installed("--help")
    assert "did you mean fit?" in installed("fitt", status=2)
    code = f"from {PACKAGE}.measures.results import next_step; print(next_step('a b', ''))"
    assert installed("-c", code) == "Model: a b; next: mpl predict 'a b' IMAGES\n"
    code = f"from {PACKAGE}.common.start import installation as how; print(how('{{}}'))"
    assert "with its extra [onnx]" in installed("-c", code.format("requirements-export.txt"))
    words = {file.stem for file in (ROOT / "tools").glob("[a-z]*.py")} - {"mpl"}
    assert words <= COMMANDS.keys()  # so that texts do not name what is not there


def test_files_of_the_project_are_found_from_any_folder(installed):
    files = ["--dataset-config-file", "configs/datasets/eurosat.yaml"]
    files += ["--config-file", "configs/trainers/CoOp/vit_b16.yaml"]
    assert "--root is missing" in installed("train", "--trainer", "CoOp", *files, status=2)
    assert "there is no config file configs/x.yaml" in installed(
        "train", "--config-file", "configs/x.yaml", status=2
    )


def test_scripts_call_the_command_and_write_to_the_folder_of_the_user(site, tmp_path):
    script = site / f"site/{PACKAGE}/scripts/mpl/base2new_train.sh"
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\npwd; echo "$@"\n')
    program.chmod(0o755)
    for dry_run, start in {"1": "mpl train", "": f"{tmp_path}\n-m {PACKAGE} train"}.items():
        done = subprocess.run(
            ["bash", script, "eurosat", "1"],
            cwd=tmp_path,
            env=os.environ | {"PYTHON": str(program), "DRY_RUN": dry_run, "OUT": ""},
            capture_output=True,
            text=True,
        )
        assert done.stdout.startswith(f"{start} --root data ") and not done.stderr
        assert " --output-dir output/base2new/train_base/eurosat/" in done.stdout
    tools = {file.name for file in (site / f"site/{PACKAGE}/tools").iterdir()}
    assert tools - {"__pycache__"} == {"__init__.py", "mpl.py"}


ECOSYSTEM = """
import numpy as np
from cleanlab import Datalab
from datasets import Dataset, Image
from mapie.classification import SplitConformalClassifier
from modular_prompt_learning import Classifier
from skactiveml.classifier import SklearnClassifier
from skactiveml.pool import UncertaintySampling
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_predict

x, y = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(x))
x, other_x = np.split(x[order[:600]], [200])
y, other_y = np.split(y[order[:600]], [200])
model = Classifier(backbone=None, minutes=0).fit(x, y)

conformal = SplitConformalClassifier(estimator=model, confidence_level=0.9, prefit=True)
_, sets = conformal.conformalize(other_x[:200], other_y[:200]).predict_set(other_x[200:])
covered = sets[np.arange(200), other_y[200:], 0].mean()
print("mapie", 0.8 < covered < 1, covered)

given = y.copy()
given[:10] = (given[:10] + 1) % 10
probabilities = cross_val_predict(model, x, given, cv=3, method="predict_proba")
lab = Datalab(data={"label": given}, label_name="label", verbosity=0)
lab.find_issues(pred_probs=probabilities, issue_types={"label": {}})
print("cleanlab", lab.get_issues("label")["is_label_issue"][:10].sum() > 5)

partly = np.where(np.arange(200) < 100, y, np.nan)
learner = SklearnClassifier(Classifier(backbone=None, minutes=0), classes=range(10))
asked = UncertaintySampling(random_state=0).query(x, partly, clf=learner, batch_size=3)
print("skactiveml", len(asked) == 3 and asked.min() >= 100)

photos = [f"{name}.png" for name in "abcdefgh"]
column = Dataset.from_dict({"image": photos}).cast_column("image", Image())["image"]
images = Classifier(backbone="small", minutes=0, methods=("GDA",)).fit(column, [0, 1] * 4)
print("datasets", images.predict(column).tolist() == [0, 1] * 4)
"""


@pytest.mark.thorough
def test_the_estimator_works_with_other_libraries(installed, site, tmp_path):
    for library in ("cleanlab", "mapie", "skactiveml"):
        pytest.importorskip(library, reason="requirements-dev.txt has it")
    for number, name in enumerate("abcdefgh"):
        shade = (250 - 9 * number, 9, 9) if number % 2 else (9, 9, 250 - 9 * number)
        Image.new("RGB", (64, 64), shade).save(tmp_path / f"{name}.png")
    printed = installed("-c", ECOSYSTEM, beside=())
    for library in ("mapie", "cleanlab", "skactiveml", "datasets"):
        assert f"{library} True" in printed, printed


METHOD = """
from dassl.engine import TRAINER_REGISTRY
from trainers.coop import CoOp
import clip


@TRAINER_REGISTRY.register()
class Mine(CoOp):
    tower = clip.CLIP
"""


@pytest.mark.thorough
def test_a_method_file_of_the_clone_works(installed, tmp_path):
    (tmp_path / "mine.py").write_text(METHOD)
    code = (
        "from pathlib import Path\n"
        "from modular_prompt_learning import trainers\n"
        "from modular_prompt_learning.trainers.base.plugin import load_method_file\n"
        "load_method_file(Path('mine.py'))\n"
        "assert 'Mine' in trainers.methods()\n"
    )
    installed("-c", code)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("import clip", "from p import clip"),
        ("import clip as c, os", "import p.clip as c; import os"),
        ("    import clip.x  # why", "    import p.clip.x; from p import clip  # why"),
        ("from clip.x import (\n    a,\n)", "from p.clip.x import (\n    a,\n)"),
        ("from . import clip; import clips", "from . import clip; import clips"),
        (
            "import os; import clip; from clip import a",
            "import os; from p import clip; from p.clip import a",
        ),
        ("text = 'import clip'", "text = 'import clip'"),
    ],
)
def test_only_imports_of_the_names_change(before, after):
    head = "if True:\n" if before.startswith(" ") else ""
    assert renamed(head + before, "p", ["clip"]) == head + after


def test_texts_name_the_commands_of_an_installation():
    text = "run `python tools/fit.py`, or tools/my_own.py, or `python train.py --x`; train.py"
    assert with_commands(text) == "run `mpl fit`, or mpl my_own, or `mpl train --x`; train.py"
    text = "(docs/own_classes.md); ../docs/methods.md"
    assert with_commands(text) == "(the page own_classes of the documentation); ../docs/methods.md"
