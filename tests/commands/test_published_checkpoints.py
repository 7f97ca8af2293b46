"""Checkpoints in the shapes, names and folders of the published projects: `tools/reproduce.py`
tests them.

The shapes, in published_checkpoints.yaml, are functions of the published numbers and depths of
prompts and of the widths of the backbone. They do not come from our YAML files or our modules.
"""

import re
from itertools import product
from pathlib import Path

import pytest
import torch
import yaml
from drawn import results
from marks import thorough_but
from published_files import published_model, published_training, save_published, write_lora
from safetensors.torch import load_file

from trainers.base.learned import Checkpoints

pytestmark = pytest.mark.slow

# Widths of the towers, numbers of a feature, classes of the training run
TEXT = 64
VISION = 128
JOINT = 256
CLASSES = 3
CASES = yaml.safe_load(Path(__file__).with_name("published_checkpoints.yaml").read_text())
RANGE = re.compile(r"\{(\d+)-(\d+)\}")


def shapes_of(part: dict[str, list[int]]) -> dict[str, list[int]]:
    """One entry for each number of a range."""
    shapes = {}
    for name, shape in part.items():
        numbers = [range(int(first), int(last) + 1) for first, last in RANGE.findall(name)]
        for place in product(*numbers):
            shapes[RANGE.sub("{}", name).format(*place)] = shape
    return shapes


@pytest.fixture(scope="module")
def backbone(backbones):
    """As deep as ViT-B/16, with towers of different widths."""
    return backbones(32, 16, 12, 12, VISION, TEXT, JOINT)


def random_tensors(part: dict[str, list[int]], seed: int) -> dict[str, torch.Tensor]:
    """In half precision, as the published code trains."""
    generator = torch.manual_seed(seed)
    return {
        key: 0.1 * torch.randn(shape, generator=generator).half()
        for key, shape in shapes_of(part).items()
    }


def publish(case: dict, folder, backbone) -> dict[str, torch.Tensor]:
    """Write a checkpoint as its project does; returns what the method has learned."""
    learned = random_tensors(case["learned"], seed=1)
    place = folder / case["place"]
    method = case["method"]
    if method == "CLIPLoRA":
        write_lora(place, learned)
        return learned
    if method == "CLIPSVD":
        place.mkdir(parents=True)
        frozen = {f"{name[:-8]}fc_U.bias": value[0] for name, value in learned.items()}
        torch.save({"weights": learned | frozen, "metadata": {}}, place / "base_model.pt")
        return learned
    state = learned | random_tensors(case.get("unused", {}), seed=2)
    if case["saved_as"] not in ("prompt_learner", "adapter_learner") or method == "VPT":
        state = published_model(state, backbone, CLASSES, prefix="")
    elif "ctx" in state:
        words = {"token_prefix": [CLASSES, 1, TEXT], "token_suffix": [CLASSES, 60, TEXT]}
        state |= random_tensors(words, seed=3)
    if method == "PromptSRC":  # its teacher
        image = {
            key: value
            for key, value in state.items()
            if key.startswith("image_encoder") and key not in learned
        }
        state |= {f"prompt_learner.ZS_{key}": value for key, value in image.items()}
    if method == "CoPrompt":  # its teacher, a plain CLIP
        state |= {
            f"model_distill.{key}": value.half() for key, value in load_file(backbone).items()
        }
    parameters = [torch.nn.Parameter(value.float()) for value in learned.values()]
    training = published_training(parameters, case["epoch"])
    save_published(place, state, saved_as=case["saved_as"], **training)
    return learned


@pytest.fixture
def tested(reproduced, monkeypatch, backbone, tmp_path):
    """`tested(case)` -> how `tools/reproduce.py` ended, what its tests have loaded, and their
    results.
    """
    loaded = []
    load = Checkpoints.load_prompts

    def noted(checkpoints, checkpoint, path):
        load(checkpoints, checkpoint, path)
        method = checkpoints.method
        tensors = method.saved_module().state_dict().items()
        state = {key: value.cpu().clone() for key, value in tensors}
        loaded.append((state, method.model.classes_learned))

    monkeypatch.setattr(Checkpoints, "load_prompts", noted)

    def tested(case):
        ended = reproduced(case["method"], backbone, *case.get("options", "").split())
        return (
            ended,
            loaded,
            [results(file.parent) for file in (tmp_path / "out").rglob("results.json")],
        )

    return tested


QUICK = "MPL", "CLIPLoRA", "DePT+MaPLe", "CLIPSVD", "MMRL", "PromptSRC"


@pytest.mark.parametrize("name", thorough_but(QUICK, CASES))
def test_published_checkpoint_is_tested_with_our_settings(name, tested, backbone, tmp_path):
    case = CASES[name]
    learned = publish(case, tmp_path / "set", backbone)
    ended, loaded, results = tested(case)
    assert ended.status == 0, ended.errors
    assert f"seed 1: {tmp_path / 'set' / case['place']}\n" in ended.printed
    tests = 1 if "--protocol" in case.get("options", "") else 2  # base and new classes
    assert [result["epochs"] for result in results] == [case["epoch"]] * tests
    assert len(loaded) == tests
    for state, learned_classes in loaded:
        assert state.keys() == learned.keys()
        assert {value.dtype for value in state.values()} == {torch.float32}
        different = {key for key in state if not torch.equal(state[key], learned[key].float())}
        # Of the learned classes alone
        head = {key for key in state if key.startswith("linear_probe_proj")}
        assert different == (set() if learned_classes else head)
