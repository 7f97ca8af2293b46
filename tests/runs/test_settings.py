"""Settings of methods: dataclasses that check themselves and read TRAINER.<NAME>.*"""

from dataclasses import dataclass, field

import pytest
import yaml
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from drawn import cfg_from
from marks import one_line, to_json
from yacs.config import CfgNode

import trainers
from common.errors import UsageError
from common.start import ROOT
from runs.arguments import parse_arguments
from runs.config import setup_cfg
from trainers.base.compat import other_methods
from trainers.base.settings import Facts, MethodSettings, PerLayer


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


def test_settings_missing_in_the_published_dassl_have_their_defaults():
    cfg = get_cfg_default()
    del cfg["CACHE"], cfg.INPUT["EXIF_ORIENTATION"]
    trainers.extend_cfg(cfg)
    assert (cfg.CACHE, cfg.INPUT.EXIF_ORIENTATION) == ("", False)


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
    method = type("Example", (Facts,), {"Settings": Example})
    with pytest.raises(UsageError, match=f"^TRAINER.EXAMPLE.{key} {text}") as caught:
        method.settings_of(CfgNode({"TRAINER": {"EXAMPLE": {key: value}}}))
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("keys", "method", "expected", "others"),
    [
        (["ctx", "token_prefix"], "CoOp", ["ctx"], []),
        (
            ["ctx", "meta_net.linear1.weight", "meta_net.linear2.weight"],
            "CoOp",
            ["ctx"],
            ["CoCoOp", "TCP"],
        ),
        (["ctx", "meta_net.linear1.weight", "bias_vectors"], "CoOp", ["ctx"], ["KgCoOp"]),
        (
            ["ctx"],
            "CoCoOp",
            ["ctx", "meta_net.linear1.weight"],
            ["CoOp", "KgCoOp", "LoCoOp", "NLPrompt", "ProGrad"],
        ),
        (
            ["prompt_learner.ctx", "image_encoder.VPT"],
            "PromptSRC",
            ["prompt_learner.ctx", "image_encoder.VPT"],
            [],
        ),
        (
            ["ctx"],
            "Unpublished",
            ["prompt_learner.ctx"],
            ["CoOp", "KgCoOp", "LoCoOp", "NLPrompt", "ProGrad"],
        ),
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
    """A method whose published YAML files have its settings under other names, as KgCoOp's and
    ProGrad's do.
    """

    class Renamed(trainers.Method):
        @dataclass(frozen=True)
        class Settings(MethodSettings):
            W: float = 8.0
            START: bool | str = ""

        published_sections = ("TRAINER.COOP", "LOSS")

    return registered(Renamed)


def test_section_is_read_under_its_published_names(renamed, tmp_path):
    (tmp_path / "theirs.yaml").write_text(
        "TRAINER:\n  COOP:\n    W: 2.0\n    START: True\nLOSS:\n  PREC: fp32\n"
    )
    argv = ["--trainer", "Renamed", "--config-file", str(tmp_path / "theirs.yaml")]
    cfg = cfg_from(*argv, "TRAINER.COOP.START", "words")
    assert dict(cfg.TRAINER.RENAMED) == {"PREC": "fp32", "W": 2.0, "START": "words"}
    assert set(cfg.TRAINER) == {"NAME", "RENAMED"} and "LOSS" not in cfg
    # The last one counts, under whatever name
    for later in (
        "TRAINER.COOP.W",
        "TRAINER.RENAMED.W",
        "LOSS.W",
    ):
        cfg = cfg_from(*argv, "TRAINER.RENAMED.W", "3.0", "TRAINER.COOP.W", "4.0", later, "5.0")
        assert renamed.settings_of(cfg).W == 5.0
    with pytest.raises(ValueError, match="TRAINER.COOP.W is 'much': give a number"):
        cfg_from(*argv, "TRAINER.COOP.W", "much")
    for key in ("TRAINER.COOP.W", "LOSS.W"):  # of another method
        with pytest.raises(ValueError, match=f"unknown config key {key}"):
            cfg_from("--trainer", "CoOp", key, "2.0")


@pytest.mark.parametrize(
    "key",
    [
        "OUTPUT_DIR",
        "DATASET.ROOT",
        "DATASET.NAME",
        "DATASET.NUM_SHOTS",
        "CACHE",
        "SEED",
        "TRAINER.NAME",
        "TEST.SPLIT",
    ]
    + ["DATALOADER.NUM_WORKERS", "MODEL.BACKBONE.NAME", "TRAINER.MPL.N_ADD_OP"],
)
def test_a_chosen_file_sets_only_settings_of_studies(key, tmp_path):
    """It is merged last, and replaced the folder of the results or the backbone without a word."""
    file = tmp_path / "chosen.json"
    for settings in ({"OPTIM.LR": "0.5"}, {"OPTIM.LR": "0.5", key: "1"}):
        to_json(file, {"settings": settings, "choices": []})
        args = parse_arguments(["--trainer", "CoOp", "--chosen", str(file)])
        if key not in settings:
            assert setup_cfg(args).OPTIM.LR == 0.5
            continue
        with one_line(f"--chosen has {key}, "):
            setup_cfg(args)


@pytest.mark.parametrize("given", [["OPTIM.LR", "0.1"], ["--transforms", "normalize"]])
def test_a_chosen_file_does_not_replace_what_the_command_line_sets(given, tmp_path):
    file = tmp_path / "chosen.json"
    settings = {"OPTIM.LR": "0.5", "INPUT.TRANSFORMS": "['random_flip', 'normalize']"}
    to_json(file, {"settings": settings, "choices": []})
    assert cfg_from("--trainer", "CoOp", "--chosen", str(file)).OPTIM.LR == 0.5
    with one_line("which the command line sets, too"):
        cfg_from("--trainer", "CoOp", "--chosen", str(file), *given)


# BY_DATASET in a method's YAML file: values for single datasets.

MPL = {"_BASE_": str(ROOT / "configs/trainers/MPL/vit_b4_c1_add2_rm1.yaml"), "OPTIM": {"LR": 0.5}}
VALUES = {"OPTIM.LR": 0.25, "TRAINER": {"MPL": {"N_ADD_OP": [2] * 8}}, "OPTIM.NAME": "adamw"}


@pytest.fixture
def configured(tmp_path):
    """`configured(table, *options)` -> the configuration of a run on EuroSAT with this table of
    base2new.
    """

    def configured(table, *options):
        file = tmp_path / "method.yaml"
        file.write_text(yaml.safe_dump(MPL | {"BY_DATASET": table}))
        dataset = ROOT / "configs/datasets/eurosat.yaml"
        argv = [
            "--trainer",
            "MPL",
            "--config-file",
            file,
            "--dataset-config-file",
            dataset,
            *options,
        ]
        return cfg_from(*argv)

    return configured


def test_values_of_the_dataset_replace_those_of_the_file(configured):
    table = {"base2new": {"EuroSAT": VALUES, "OxfordPets": {"OPTIM.LR": 3.0}}}
    for classes in ("base", "new"):
        cfg = configured(table, "DATASET.SUBSAMPLE_CLASSES", classes)
        assert (cfg.OPTIM.LR, cfg.OPTIM.NAME, cfg.TRAINER.MPL.N_ADD_OP) == (0.25, "adamw", [2] * 8)
        assert cfg.BY_DATASET == {
            "OPTIM.LR": 0.25,
            "TRAINER.MPL.N_ADD_OP": [2] * 8,
            "OPTIM.NAME": "adamw",
        }
    for table, classes in (({"OxfordPets": VALUES}, "base"), ({"EuroSAT": VALUES}, "all")):
        cfg = configured({"base2new": table}, "DATASET.SUBSAMPLE_CLASSES", classes)
        assert (cfg.OPTIM.LR, cfg.BY_DATASET) == (0.5, {})


def test_values_for_all_runs_and_those_for_halves_of_the_classes(configured):
    table = {
        "EuroSAT": {"OPTIM.LR": 0.25, "OPTIM.NAME": "adam"},
        "base2new": {"EuroSAT": {"OPTIM.LR": 0.125}},
    }
    for classes, rate in (("all", 0.25), ("base", 0.125), ("new", 0.125)):
        cfg = configured(table, "DATASET.SUBSAMPLE_CLASSES", classes)
        assert cfg.OPTIM.NAME == "adam" and rate == cfg.OPTIM.LR


def test_command_line_goes_before_the_values_of_the_dataset(configured):
    table = {"base2new": {"EuroSAT": VALUES | {"MODEL.BACKBONE.NAME": "small", "SEED": 5}}}
    options = ["--backbone", "RN50", "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.LR", "0.75"]
    cfg = configured(table, *options)
    assert (cfg.OPTIM.LR, cfg.OPTIM.NAME, cfg.MODEL.BACKBONE.NAME, cfg.SEED) == (
        0.75,
        "adamw",
        "RN50",
        5,
    )
    assert set(cfg.BY_DATASET) == {"TRAINER.MPL.N_ADD_OP", "OPTIM.NAME", "SEED"}


def test_run_logs_them_and_its_config_file_repeats_it(run, tmp_path):
    file = tmp_path / "method.yaml"
    base = ("DATASET.SUBSAMPLE_CLASSES", "base")
    file.write_text(
        yaml.safe_dump(MPL | {"BY_DATASET": {"base2new": {"EuroSAT": {"OPTIM.LR": 0.25}}}})
    )

    def started(name, config, *overrides):
        folder = run(name, *base, *overrides, options=["--config-file", config, "--no-train"])
        return (folder / "log.txt").read_text(), yaml.safe_load(
            (folder / "config.yaml").read_text()
        )["OPTIM"]["LR"]

    line = "The YAML file sets for EuroSAT (BY_DATASET): OPTIM.LR 0.25\n"
    log, rate = started("out", file)
    assert line in log and rate == 0.25
    log, rate = started("given", file, "OPTIM.LR", 0.75)
    assert line not in log and rate == 0.75
    assert started("again", tmp_path / "given/config.yaml")[1] == 0.75
