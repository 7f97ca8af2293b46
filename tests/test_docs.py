"""What the documentation shows, works."""

import re
import sys
from pathlib import Path

import pytest
import torch
from dassl.engine import TRAINER_REGISTRY, build_trainer
from drawn import make_cfg

from trainers import PromptTrainer

ROOT = Path(__file__).parent.parent


@pytest.fixture
def own_method(tmp_path, monkeypatch):
    """The method of docs/methods.md, as a module; forgotten afterwards."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/methods.md").read_text(), re.DOTALL)
    (tmp_path / "growing.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    __import__("growing")
    yield
    del sys.modules["growing"]
    del TRAINER_REGISTRY._obj_map["Growing"]
    PromptTrainer.methods[:] = [method for method in PromptTrainer.methods if method.__name__ != "Growing"]


def test_the_method_of_ones_own_trains_and_is_evaluated(own_method, eurosat, tiny, tmp_path):
    cfg = make_cfg("Growing", eurosat, tiny, tmp_path / "out", "TRAINER.GROWING.DEPTH", 4, "OPTIM.MAX_EPOCH", 1)
    trainer = build_trainer(cfg)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    assert before.keys() == {"prompt_learner.ctx", *(f"prompt_learner.vision_prompts.{layer}" for layer in range(4))}
    assert not any(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert trainer.n_test == 24


def test_every_file_and_script_that_the_readme_names_is_there():
    text = (ROOT / "README.md").read_text() + (ROOT / "docs/methods.md").read_text()
    named = set(
        re.findall(r"\b(?:scripts|configs|trainers|clip|datasets|docs|tests)/[\w/+.-]+\.(?:sh|py|yaml|md)", text)
    )
    assert len(named) > 10
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []
