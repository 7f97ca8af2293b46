"""Settings of methods: dataclasses that check themselves and read TRAINER.<NAME>.*"""

import json
from dataclasses import dataclass, field

import pytest
from dassl.engine import TRAINER_REGISTRY

import trainers
from common.errors import UsageError
from experiments.arguments import parse_arguments
from experiments.configuration import setup_cfg
from trainers.base.compat import other_methods
from trainers.base.settings import MethodSettings, PerLayer


@dataclass(frozen=True)
class Example(MethodSettings):
    DEPTH: int = 3
    COUNTS: PerLayer = 1
    N_CTX: int = 4
    W: float = 8.0
    STEPS: list[int] = field(default_factory=list)
    WORDS: str = ""
    ranges = {"COUNTS": (0, 9)}

    def check(self):
        if self.DEPTH < 1:
            raise UsageError(f"DEPTH is {self.DEPTH}", "start at 1")
        self.per_layer("COUNTS", self.DEPTH, "DEPTH")


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("PREC", "half", "is 'half': give one of fp16, bf16, fp32, amp"),
        ("DEPTH", 0, "is 0: start at 1"),
        ("COUNTS", [1], r"is \[1\]: give one number, or a list of DEPTH = 3 of them"),
        ("COUNTS", [1, -1, 1], r"is \[1, -1, 1\]: give an integer from 0 to 9 or a list"),
        ("N_CTX", 0, "is 0: give an integer from 1 to 256"),
        ("W", float("nan"), "is nan: give a number from -1,000,000 to 1,000,000"),
    ],
)
def test_invalid_values_are_named_with_their_key(key, value, text):
    with pytest.raises(UsageError, match=f"^TRAINER.EXAMPLE.{key} {text}") as caught:
        Example.from_cfg({key: value}, "EXAMPLE")
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("keys", "method", "expected", "others"),
    [
        (["ctx", "token_prefix"], "CoOp", ["ctx"], []),
        (["ctx", "meta_net.linear1.weight", "meta_net.linear2.weight"], "CoOp", ["ctx"], ["CoCoOp", "TCP"]),
        (["ctx", "meta_net.linear1.weight", "bias_vectors"], "CoOp", ["ctx"], ["KgCoOp"]),
        (["ctx"], "CoCoOp", ["ctx", "meta_net.linear1.weight"], ["CoOp", "KgCoOp", "LoCoOp", "ProGrad"]),
        (["prompt_learner.ctx", "image_encoder.VPT"], "PromptSRC", ["prompt_learner.ctx", "image_encoder.VPT"], []),
        (["ctx"], "Unpublished", ["prompt_learner.ctx"], ["CoOp", "KgCoOp", "LoCoOp", "ProGrad"]),
    ],
)
def test_method_of_a_published_checkpoint_is_guessed_from_its_keys(keys, method, expected, others):
    assert other_methods(keys, method, expected) == others


@pytest.fixture
def registered(monkeypatch):
    """`registered(method)`: the method is registered during the test."""

    def registered(method):
        monkeypatch.setitem(TRAINER_REGISTRY._obj_map, method.__name__, method)
        return method

    return registered


@pytest.fixture
def renamed(registered):
    """A method whose published YAML files have its settings under other names, as KgCoOp's and ProGrad's do."""

    class Renamed(trainers.PromptTrainer):
        @dataclass(frozen=True)
        class Settings(MethodSettings):
            W: float = 8.0
            START: bool | str = ""

        published_sections = ("TRAINER.COOP", "LOSS")

    return registered(Renamed)


def test_section_is_read_under_its_published_names(renamed, tmp_path):
    (tmp_path / "theirs.yaml").write_text("TRAINER:\n  COOP:\n    W: 2.0\n    START: True\nLOSS:\n  PREC: fp32\n")
    argv = ["--trainer", "Renamed", "--config-file", str(tmp_path / "theirs.yaml")]
    cfg = setup_cfg(parse_arguments([*argv, "TRAINER.COOP.START", "words"]))
    assert dict(cfg.TRAINER.RENAMED) == {"PREC": "fp32", "W": 2.0, "START": "words"}
    assert set(cfg.TRAINER) == {"NAME", "RENAMED"} and "LOSS" not in cfg
    for later in ("TRAINER.COOP.W", "TRAINER.RENAMED.W", "LOSS.W"):  # the last one counts, under whatever name
        cfg = setup_cfg(parse_arguments([*argv, "TRAINER.RENAMED.W", "3.0", "TRAINER.COOP.W", "4.0", later, "5.0"]))
        assert renamed.settings_of(cfg).W == 5.0
    with pytest.raises(ValueError, match="TRAINER.COOP.W is 'much': give a number"):
        setup_cfg(parse_arguments([*argv, "TRAINER.COOP.W", "much"]))
    for key in ("TRAINER.COOP.W", "LOSS.W"):  # of another method
        with pytest.raises(ValueError, match=f"unknown config key {key}"):
            setup_cfg(parse_arguments(["--trainer", "CoOp", key, "2.0"]))


@pytest.mark.parametrize(
    "key",
    ["OUTPUT_DIR", "DATASET.ROOT", "DATASET.NAME", "DATASET.NUM_SHOTS", "CACHE", "SEED", "TRAINER.NAME", "TEST.SPLIT"]
    + ["DATALOADER.NUM_WORKERS", "MODEL.BACKBONE.NAME", "TRAINER.MPL.N_ADD_OP"],
)
def test_a_chosen_file_sets_nothing_that_no_study_chooses(key, tmp_path):
    """It is merged last, and replaced the folder of the results or the backbone without a word."""
    file = tmp_path / "chosen.json"
    for settings in ({"OPTIM.LR": "0.5"}, {"OPTIM.LR": "0.5", key: "1"}):
        file.write_text(json.dumps({"settings": settings, "choices": []}))
        args = parse_arguments(["--trainer", "CoOp", "--chosen", str(file)])
        if key not in settings:
            assert setup_cfg(args).OPTIM.LR == 0.5
            continue
        with pytest.raises(UsageError, match=f"--chosen has {key}, "):
            setup_cfg(args)


@pytest.mark.parametrize("given", [["OPTIM.LR", "0.1"], ["--transforms", "normalize"]])
def test_a_chosen_file_does_not_replace_what_the_command_line_sets(given, tmp_path):
    file = tmp_path / "chosen.json"
    settings = {"OPTIM.LR": "0.5", "INPUT.TRANSFORMS": "['random_flip', 'normalize']"}
    file.write_text(json.dumps({"settings": settings, "choices": []}))
    assert setup_cfg(parse_arguments(["--trainer", "CoOp", "--chosen", str(file)])).OPTIM.LR == 0.5
    with pytest.raises(UsageError, match="which the command line sets, too"):
        setup_cfg(parse_arguments(["--trainer", "CoOp", "--chosen", str(file), *given]))
