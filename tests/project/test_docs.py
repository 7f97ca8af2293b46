"""The examples of the documentation, in a fresh copy of the project, as a reader would use them."""

import re
import shlex
import shutil
from functools import partial
from pathlib import Path

import pytest
import yaml
from drawn import card
from finished import InThisProcess
from marks import files_of, of_json, thorough_but
from PIL import Image

from common.start import ROOT
from studies import command as study_command
from studies import demo
from studies import run as execution
from studies.plan import Study

pytestmark = pytest.mark.slow


@pytest.mark.thorough
def test_dataset_of_your_own_needs_one_file_and_one_yaml(call, copy):
    """The class of docs/datasets.md, on images and a split made here."""
    ((file, code),) = [
        item for item in files_of(ROOT / "docs/datasets.md").items() if item[0].endswith(".py")
    ]
    name, (class_name,) = Path(file).stem, re.findall(r"class (\w+)\(", code)
    folder, images, split = re.findall(r'(?:dataset_dir|image_dir|split_file) = "(.*?)"', code)
    (copy / file).write_text(code)
    (copy / f"configs/datasets/{name}.yaml").write_text(
        yaml.safe_dump({"DATASET": {"NAME": class_name}})
    )
    shutil.copytree(copy / "data/small_land/images", copy / "data" / folder / images)
    shutil.copy(copy / "data/small_land/split.json", copy / "data" / folder / split)
    # As the commands of docs/add_a_method.md
    growing = {
        "OUT": "out/dataset",
        "PLUGIN": "mine/growing.py",
    }
    call("scripts/any/base2new_train.sh", "Growing", name, 1, 1, **growing)
    assert (
        "Harmonic mean"
        in call("scripts/any/base2new_test.sh", "Growing", name, 1, **growing).stdout
    )
    assert "nothing is wrong" in call("tools/prepare.py", "--check", name, "--root", "data").stdout
    found = sorted((copy / "out/dataset").rglob("results.json"))
    assert [of_json(file)["dataset"] for file in found] == [class_name, class_name]


def quick_start(title: str, language: str = "bash") -> str:
    """The first block of a language below a heading of README.md."""
    part = (ROOT / "README.md").read_text().partition(f"## {title}\n")[2]
    return re.search(rf"```{language}\n(.*?)```", part, re.DOTALL)[1]


@pytest.mark.thorough
def test_quick_start_of_a_study_runs_as_it_is_written_with_one_method_and_seed(
    command, copy, monkeypatch
):
    study = quick_start("Quick start: compare methods", "yaml")
    quick = "{MPL: {overrides: {OPTIM.MAX_EPOCH: 1, TEST.MAX_IMAGES: 32}}}"
    (copy / "mine.yaml").write_text(study.replace("[1, 2, 3]", "[1]").replace("[CoOp, MPL]", quick))
    monkeypatch.chdir(copy)
    monkeypatch.setattr(execution, "LocalExecutor", InThisProcess)
    commands = quick_start("Quick start: compare methods").replace(
        "run mine.yaml", "run mine.yaml --workers 1"
    )
    for line in commands.splitlines():
        python, program, *arguments = shlex.split(line, comments=True)
        assert (python, program) == ("python", "tools/study.py")
        done = command.works(study_command, *arguments)
    assert "small_land" in done.printed and "| MPL |" in done.printed


@pytest.mark.parametrize("by_hand", thorough_but([False], [False, True]))
def test_quick_start_with_own_classes_and_its_page_run_as_they_are_written(by_hand, call, copy):
    for path, label, name in of_json(copy / "data/small_land/split.json")["train"]:
        if label < 3 and len(list((copy / "birds").glob(f"{name}/*"))) < 8:
            (copy / "birds" / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(copy / "data/small_land/images" / path, copy / "birds" / name)
    shutil.copy(next(copy.glob("birds/*/*.*")), copy / "photo.jpg")
    page = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/datasets.md").read_text(), re.DOTALL)
    (methods,) = [block for block in page if "zeroshot.sh image_folder" in block]
    names = quick_start("Quick start: name the classes")
    block = names + (methods if by_hand else quick_start("Quick start: own classes"))
    for written, here in {
        "vit_b4_c1_add2_rm1": "small",
        "python ": '"$PYTHON" ',
        "--to": "--backbone small --minutes 0 --methods GDA ZSLP --to",
        "ViT-B/16": "small",
    }.items():
        block = block.replace(written, here)
    (copy / "quick.sh").write_text(f"set -e\n{block}")
    printed = call("quick.sh").stdout
    if by_hand:
        assert re.search(r"^ZeroshotCLIP on image_folder", printed, re.MULTILINE), printed
    else:
        assert (copy / "exported/birds/report.html").is_file()


# make demo.


@pytest.mark.thorough
def test_demo_writes_a_table_a_file_and_a_picture(drawn, tmp_path, monkeypatch, capsys):
    output = tmp_path / "demo"
    root = tmp_path / "data"
    shutil.copytree(drawn / "small_objects", root / "small_objects")
    monkeypatch.setattr(demo, "Study", partial(Study, shots=(2,)))  # to save time
    monkeypatch.setattr(execution, "LocalExecutor", InThisProcess)
    line = f"--output {output} --root {root} --methods CoOp --seeds 1 --workers 1"
    argv = line.split()
    demo.main(argv)
    base = {}
    for cell in of_json(output / "summary.json")["cells"]:
        if (cell["part"], cell["dataset"]) == ("base", "small_objects"):
            base[cell["method"]] = cell["mean"]
    assert base["ZeroshotCLIP"] == pytest.approx(card("SmallObjects")[1], abs=0.7)
    assert base["CoOp"] > base["ZeroshotCLIP"] + 5
    with Image.open(output / "images.png") as picture:
        assert min(picture.size) > 300
    printed = capsys.readouterr().out
    assert "| CoOp |" in printed and "summary.json" in printed and "cannot rank methods" in printed
    monkeypatch.setattr(
        InThisProcess, "submit", lambda *run: pytest.fail("a run was started again")
    )
    demo.main(argv)
    assert capsys.readouterr().out.endswith(printed[-200:])
