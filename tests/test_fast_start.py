"""What does not wait for torch: the facts of methods from their source, and the status of a study."""

import shutil
import subprocess
import sys

import pytest

import trainers
from common.errors import UsageError
from common.start import ROOT
from experiments import methods
from experiments.studies.study_file import load

QUICK = """
import sys
from experiments.studies.command import main
main(["status", {file!r}])
slow = {{"torch", "torchvision", "open_clip", "scipy", "sklearn", "pandas", "matplotlib"}} & set(sys.modules)
sys.exit(f"imported: {{slow}}" if slow else 0)
"""


FACTORY = """
from dassl.engine import TRAINER_REGISTRY
from .zsclip import ZeroshotCLIP

def make(name, transfers):
    return type(name, (ZeroshotCLIP,), {"transfers": transfers, "config_folder": "A" + "B", "__module__": __name__})

TRAINER_REGISTRY.register()(make("Made", False))
"""
ASK = "from experiments.methods import methods; import sys; print(methods().get('Made'), 'torch' in sys.modules)"


@pytest.mark.thorough
def test_method_of_a_factory_is_known_without_importing_it_again(tmp_path):
    place = tmp_path / "clone"
    for folder in ("clip", "common", "configs", "datasets", "experiments", "trainers"):
        shutil.copytree(ROOT / folder, place / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", place)
    (place / "trainers/made.py").write_text(FACTORY)

    def ask():
        return subprocess.run([sys.executable, "-c", ASK], cwd=place, stdout=subprocess.PIPE, text=True).stdout

    facts = "Method(name='Made', learns=False, transfers=False, config_folder='AB', section='MADE', kind='inductive')"
    assert [ask(), ask()] == [f"{facts} True\n", f"{facts} False\n"]
    helped = subprocess.run([sys.executable, "train.py", "--help"], cwd=place, capture_output=True, text=True)
    assert "Made" in helped.stdout
    (place / "trainers/made.py").write_text(FACTORY.replace('"Made", False', '"Made", True'))
    changed = facts.replace("transfers=False", "transfers=True")
    assert ask() == f"{changed} True\n"
    (place / "trainers/__pycache__/methods.json").write_text("{")
    assert ask() == f"{changed} True\n"


def test_kept_facts_are_those_of_the_registry(monkeypatch):
    registered = methods.methods()
    methods.kept_facts.cache_clear()
    assert methods.kept_facts() == registered  # now they are in the file
    methods.kept_facts.cache_clear()
    monkeypatch.setitem(sys.modules, "trainers", None)  # as if it were not imported
    assert methods.methods() == registered and set(registered) == set(trainers.methods())


def test_status_imports_nothing_slow(study_file, tmp_path):
    methods.kept_facts.cache_clear()
    methods.kept_facts()
    code = QUICK.format(file=str(study_file("status")))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("0 of 4 runs are done")


def test_study_without_its_settings_checked_still_has_no_run_twice(study_file):
    file = study_file("twice", datasets=["small_land", "small_land"])
    with pytest.raises(UsageError, match="twice"):
        load(file, settings=False)
