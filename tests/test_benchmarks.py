"""benchmarks/measure.py: a record for each way, of two checkouts and of official code."""

import json
import re

import pytest

from benchmarks import measure
from common.start import ROOT
from experiments.session import run_command

# A checkout in the form of CoOp's, with a method of its own.
OFFICIAL = dict.fromkeys(("clip/__init__.py", "datasets/__init__.py", "trainers/__init__.py"), "") | {
    "train.py": """
from yacs.config import CfgNode
import datasets
import trainers.coop

def extend_cfg(cfg):
    cfg.TRAINER.COOP = CfgNode({"PREC": "fp16"})
""",
    "clip/clip.py": """
def _download(url, root):
    raise AssertionError("it has to be replaced")
""",
    "trainers/coop.py": """
import torch
from clip import clip
from dassl.engine import TRAINER_REGISTRY, TrainerX

@TRAINER_REGISTRY.register()
class CoOp(TrainerX):
    def build_model(self):
        width = torch.load(clip._download("ViT-B-16.pt", "~/.cache"))["text_projection"].shape[1]
        self.model = torch.nn.Linear(width, len(self.dm.dataset.classnames)).half()

    def forward_backward(self, batch):
        scores = self.model(batch["img"].flatten(1)[:, : self.model.in_features])
        return {"loss": torch.nn.functional.cross_entropy(scores, batch["label"]).item()}
""",
    "configs/trainers/CoOp/vit_b16.yaml": "OPTIM:\n  LR: 0.002\n",
}


@pytest.fixture
def checkout(tmp_path):
    for name, text in OFFICIAL.items():
        (tmp_path / "official" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "official" / name).write_text(text)
    return tmp_path / "official"


@pytest.mark.slow
@pytest.mark.thorough
def test_checkouts_and_official_code_are_measured_in_turns(checkout, backbones, python, tmp_path, monkeypatch):
    monkeypatch.setattr(measure.sys, "executable", str(python))
    options = ["--trainer", "CoOp", "--classes", "3", "--batch", "1", "--form", "fast", "--rounds", "1"]
    options += ["--seconds", "0", "--threads", "1", "--backbone", backbones(224, 16, 12, 12, 64, 64, 256)]
    options += ["--against", ROOT, "--official", checkout, "--json", tmp_path / "times.json"]
    measure.main([str(option) for option in options])
    records = json.loads((tmp_path / "times.json").read_text())
    assert [record["code"] for record in records] == ["this", str(ROOT), "official"]
    assert records[0]["ratio"] == 1 and all(record["seconds"] > 0 and record["mb"] >= 0 for record in records)


def test_folder_without_official_code_is_named(checkout, ended):
    (checkout / "clip/clip.py").unlink()
    error = ended(lambda: run_command(lambda: measure.main(["--official", str(checkout)]))).error
    assert error.count("\n") == 0 and f"{checkout} has no clip/clip.py" in error


@pytest.mark.parametrize("page", ["benchmarks/README.md", "benchmarks/measure.py", "Makefile"])
def test_every_command_of_a_page_is_accepted(page):
    words = re.findall(r"benchmarks/measure\.py +(--[^`#\n]*)", (ROOT / page).read_text())
    for options in [*words, *measure.SECTIONS.values()]:
        measure.parser().parse_args(re.sub(r"\$\((\w+)\)", "1", options).split())
    assert words
