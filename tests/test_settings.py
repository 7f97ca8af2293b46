"""Settings of methods: dataclasses that check themselves and read TRAINER.<NAME>.*"""

import json
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Optional, Union

import pytest
from dassl.engine import TRAINER_REGISTRY

import trainers
from common.errors import UsageError
from common.schema import Accepts
from common.start import ROOT
from experiments.arguments import parse_arguments
from experiments.configuration import setup_cfg, unread_keys
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


def test_settings_are_read_from_a_node():
    settings = Example.from_cfg({"DEPTH": 2, "COUNTS": [0, 5], "OTHER": 1}, "EXAMPLE")
    assert (settings.PREC, settings.DEPTH, settings.COUNTS) == ("fp16", 2, [0, 5])
    assert settings.per_layer("COUNTS", 2, "DEPTH") == [0, 5]
    assert Example().per_layer("COUNTS", 3, "DEPTH") == [1, 1, 1]


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
    ("kind", "accepted", "refused"),
    [
        (int, [1, 0], [1.0, True, "1", None, 2]),
        (float, [1, 0.5], [True, "1", None, 1.5]),
        (bool, [True], [1, None]),
        (bool | str, [True, "words"], [1, None, ["words"]]),
        (int | list[int], [1, [0, 1], (1,)], ["1", [2], [[1]], [1.0], True]),
        (Union[int, list], [1, ["a", 0.5]], ["1", [2], None]),  # noqa: UP007 - the older spelling
        (Optional[float], [None, 1], ["", 2]),  # noqa: UP045
        (Literal["a", "b"], ["a"], ["c", ["a"], None]),
        (Any, [None, {}], []),
    ],
)
def test_values_of_a_type(kind, accepted, refused):
    accepts = Accepts(kind, 0, 1)
    assert [value for value in accepted if not accepts.accepts(value)] == []
    assert [value for value in refused if accepts.accepts(value)] == []


def test_a_method_replaces_a_range():
    @dataclass(frozen=True)
    class Extended(Example):
        SCALE: float = 0.5
        ranges = {"N_CTX": (0, 4), "SCALE": (0, 1)}

    assert Extended(N_CTX=0).N_CTX == 0
    for values in ({"N_CTX": 5}, {"SCALE": 1.5}, {"COUNTS": 10}):
        with pytest.raises(UsageError, match="give an? (number|integer) from 0 to"):
            Extended.from_cfg(values, "OWN")


@pytest.mark.parametrize(
    "file", sorted((ROOT / "configs").glob("*/**/*.yaml")), ids=lambda file: f"{file.parent.name}/{file.stem}"
)
def test_every_yaml_file_keeps_the_limits(file):
    trainer = ["--trainer", file.parent.name] if file.parent.name in trainers.methods() else []
    assert setup_cfg(parse_arguments([*trainer, "--config-file", str(file)])).is_frozen()


def test_ranges_are_those_of_settings():
    for method in trainers.methods().values():
        names = {item.name for item in fields(method.Settings)}
        assert set(method.Settings.ranges) <= names | set(MethodSettings.ranges)


@pytest.mark.parametrize(
    ("keys", "method", "expected", "others"),
    [
        (["ctx", "token_prefix"], "CoOp", ["ctx"], []),
        (["ctx", "meta_net.linear1.weight", "meta_net.linear2.weight"], "CoOp", ["ctx"], ["CoCoOp", "TCP"]),
        (["ctx", "meta_net.linear1.weight", "bias_vectors"], "CoOp", ["ctx"], ["KgCoOp"]),
        (["ctx", "meta_net.linear1.weight", "bias_vectors"], "KgCoOp", ["ctx"], []),
        (["ctx"], "CoCoOp", ["ctx", "meta_net.linear1.weight"], ["CoOp", "KgCoOp", "LoCoOp", "ProGrad"]),
        (["prompt_learner.ctx", "image_encoder.VPT"], "PromptSRC", ["prompt_learner.ctx", "image_encoder.VPT"], []),
        (["ctx"], "Unpublished", ["ctx"], []),
        (["ctx"], "Unpublished", ["prompt_learner.ctx"], ["CoOp", "KgCoOp", "LoCoOp", "ProGrad"]),
        (["something"], "CoOp", ["ctx"], []),
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


@pytest.mark.parametrize(("method", "unread"), [("KgCoOp", "MPL"), ("DePT+MPL", "COOP"), ("ZeroshotCLIP", "MPL")])
def test_keys_of_other_methods_are_known(method, unread):
    own = {"KgCoOp": "COOP", "DePT+MPL": "MPL", "ZeroshotCLIP": "ZEROSHOTCLIP"}[method]
    keys = ["TRAINER.NAME", f"TRAINER.{own}.PREC", "OPTIM.LR", f"TRAINER.{unread}.PREC"]
    assert unread_keys(keys, setup_cfg(parse_arguments(["--trainer", method]))) == [keys[-1]]


def test_key_of_several_types_of_one_method_does_not_loosen_those_of_others(renamed):
    with pytest.raises(ValueError, match="TRAINER.COOP.CTX_INIT is True: give text"):
        setup_cfg(parse_arguments(["--trainer", "CoOp", "TRAINER.COOP.CTX_INIT", "True"]))


def test_methods_may_share_a_section(registered):
    """As KgCoOp, whose published YAML files set TRAINER.COOP.*"""

    class Sharing(trainers.PromptTrainer):
        @dataclass(frozen=True)
        class Settings(MethodSettings):
            W: float = 8.0
            N_CTX: int = 4

        @classmethod
        def section(cls):
            return "COOP"

    registered(Sharing)
    cfg = setup_cfg(parse_arguments(["--trainer", "Sharing", "TRAINER.COOP.W", "2.0"]))
    assert dict(cfg.TRAINER.COOP) == {"PREC": "fp16", "W": 2.0, "N_CTX": 4}
    cfg = setup_cfg(parse_arguments(["--trainer", "CoOp", "TRAINER.COOP.CSC", "True"]))
    assert cfg.TRAINER.COOP.CSC and "W" not in cfg.TRAINER.COOP
    with pytest.raises(ValueError, match="unknown config key TRAINER.COOP.W"):
        setup_cfg(parse_arguments(["--trainer", "CoOp", "TRAINER.COOP.W", "2.0"]))


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
