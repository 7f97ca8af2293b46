"""The commands of the pages, in a copy of the project with drawn images and the small CLIP: each is
run as it is written, or listed here with the reason why not.
"""

import csv
import re
import shutil
from pathlib import Path

import pytest
from marks import of_json

from common.start import ROOT

pytestmark = pytest.mark.slow

NOT_RUN = {
    r"git clone|^cd |^make |^source |-m venv": "sets up another copy of the project",
    r"^pip |^hf auth|--push-to-hub": "needs a network",
    r"tools/prepare\.py( backbone| eurosat| all| --check eurosat)": "downloads",
    r"serve\.py|--page$|label_studio|^curl|^docker": "a server: tests/commands/test_serve.py",
    r"sbatch|bin/ray|--address auto": "needs a cluster",
    r"imagenet|studies/base2new\.yaml": "needs ImageNet, or days",
    r"tools/reproduce\.py|reproduce_maple\.sh|parse_test_res": "needs checkpoints or logs of others: "
    "tests/commands/test_published_checkpoints.py, tests/commands/test_parse.py",
    r"(predict|export)\.py adapter": "needs a folder of PEFT: tests/commands/test_peft.py",
    r"train\.py \.\.\.|tools/compare\.py output/\.\.\.": "is shortened",
    r"REPORT_TO=wandb": "needs wandb: tests/runs/test_trackers.py",
    r"mpl/few_shot\.sh birds|DATA=birds bash scripts/mpl/base2new|prepare\.py sentences birds": "needs "
    "the YAML file of the page: tests/datasets/test_image_folder.py",
    r"lpclip/few_shot\.sh": "five searches: tests/commands/test_scripts.py",
}
HERE = {
    r"\bViT-B/16\b": "small",
    r"\beurosat( dtd)?\b": "small_land",
    r"vit_b4_c1_add2_rm1|TPT/vit_b16": lambda found: (
        f"{found[0].partition('/')[0]}/small" if "/" in found[0] else "small"
    ),
    r"(tools/fit\.py (?!.*--backbone).*)": r"\1 --backbone small",
    r"(tools/fit\.py .*)": r"\1 --minutes 0 --methods GDA ZSLP",
    r"--error 2%": "--error 90%",
    r'"1 2 3"': "1",
    r"\b4 10 OPTIM": "4 1 OPTIM",
    r"^((?:\w+=\S+ )*)bash ": r"BACKBONE=small \1bash ",
}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[str]:
    """The commands of a page, each on one line and without its comment."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    lines = [re.sub(r"(^|\s+)#.*", "", line) for line in lines]
    return [" ".join(line.split()) for line in lines if line]


def to_run(page: Path) -> list[str]:
    reasons = re.compile("|".join(NOT_RUN))
    return [line for line in commands(page) if not reasons.search(line)]


def here(line: str) -> str:
    """A command for the small CLIP and drawn images."""
    for written, small in HERE.items():
        line = re.sub(written, small, line)
    return re.sub(r"^python ", '"$PYTHON" ', line)


def test_each_reason_is_of_a_command():
    written = [line for page in PAGES for line in commands(page)]
    for reason in NOT_RUN:
        assert any(re.search(reason, line) for line in written), reason


@pytest.fixture(scope="module")
def reader(call, copy):
    """The folder of a reader, who has birds, photos and finished runs."""
    split = of_json(copy / "data/small_land/split.json")
    for path, label, name in split["train"]:
        for folder in (copy / "birds" / name, copy / "photos") if label < 3 else ():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(copy / "data/small_land/images" / path, folder / path.replace("/", "_"))
    shutil.copytree(next((copy / "birds").iterdir()), copy / "more_photos")
    for path, label, name in split["test"]:
        if label < 3:
            (copy / "apart" / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(copy / "data/small_land/images" / path, copy / "apart" / name)
    shutil.copy(next(copy.glob("apart/*/*")), copy / "photo.jpg")
    study = re.search(r"# mine\.yaml\n(.*?)```", (ROOT / "docs/studies.md").read_text(), re.DOTALL)
    (copy / "mine.yaml").write_text(study[1].replace("[1, 2, 3]", "[1]"))
    for method in ("MPL", "CoOp", "MaPLe"):
        options = f"--root data --seed 1 --trainer {method} --output-dir output/{method.lower()}"
        options += f" --config-file configs/trainers/{method}/small.yaml"
        options += " --dataset-config-file configs/datasets/small_land.yaml --backbone small"
        call("train.py", *options.split())
    return copy


def fill_in(asked: Path) -> None:
    """Labels for the images of a file of `label`."""
    with asked.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["label"] = ("robin", "blue tit")[number % 2]
    with asked.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "page", [page for page in PAGES if to_run(page)], ids=lambda page: page.stem
)
def test_commands_of_a_page_run(page, reader, call):
    lines = to_run(page)
    fits = any("--to exported/birds" in line for line in lines)
    if fits:
        shutil.rmtree(reader / "exported/birds", ignore_errors=True)
    elif not (reader / "exported/birds").exists():
        lines.insert(0, "python tools/fit.py birds --to exported/birds")
    for line in lines:
        if "fit.py asked.csv" in line:
            fill_in(reader / "asked.csv")
        (reader / "line.sh").write_text(f"set -e\n{here(line)}\n")
        call("line.sh")
