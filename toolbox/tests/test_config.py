"""Configuration: defaults, merging, and errors that name the key."""

import time
from functools import reduce
from operator import getitem

import pytest
import yaml
from dassl.config import CfgNode, clean_cfg, get_cfg_default, yaml_text
from dassl.config.defaults import SETTINGS
from dassl.utils import MissingFileError, UsageError
from yacs.config import CfgNode as YacsNode

from common.schema import Accepts


@pytest.fixture
def cfg():
    """The defaults, and options added as in published ``train.py`` scripts: plain yacs nodes."""
    cfg = get_cfg_default()
    cfg.TRAINER.COOP = YacsNode({"N_CTX": 16, "CTX_INIT": ""})
    cfg.TRAINER.MAPLE = YacsNode({"PROMPT_DEPTH": 9})
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"
    return cfg


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return str(path)


def test_defaults_are_the_published_ones():
    cfg = get_cfg_default()
    groups = {name for name, value in cfg.items() if isinstance(value, CfgNode)}
    assert (
        groups == {"INPUT", "DATASET", "DATALOADER", "MODEL", "OPTIM", "TRAIN", "TEST", "TRAINER"}
        and len(cfg) == 16
    )
    assert cfg.DATALOADER.TRAIN_U == {"SAME_AS_X": True, **cfg.DATALOADER.TRAIN_X}
    assert cfg.DATALOADER.TRAIN_X == {
        "SAMPLER": "RandomSampler",
        "BATCH_SIZE": 32,
        "N_DOMAIN": 0,
        "N_INS": 16,
    }
    assert (cfg.OPTIM.NAME, cfg.OPTIM.LR, cfg.OPTIM.WEIGHT_DECAY) == ("adam", 0.0003, 5e-4)
    assert (cfg.OPTIM.STEPSIZE, cfg.OPTIM.WARMUP_EPOCH, cfg.OPTIM.WARMUP_TYPE) == (
        (-1,),
        -1,
        "linear",
    )
    # One of INPUT is ours
    assert (len(cfg.INPUT), len(cfg.DATASET), len(cfg.OPTIM), len(cfg.TEST)) == (
        24,
        11,
        22,
        6,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("OPTIM:\n  LR: [0.1]\n", "{path}: OPTIM.LR is [0.1]: give a number from 0 to 1,000"),
        ("OPTIM:\n  LR: 0.1\n NAME: sgd\n", "{path} line 3 is invalid YAML"),
        ("- a\n- b\n", "{path} is not a config"),
        (
            "TRAINER:\n  COOP:\n    CTX_INIT: 2024-01-01\n",
            "CTX_INIT is datetime.date(2024, 1, 1): give a value",
        ),
    ],
)
def test_damaged_files_give_one_line_errors(tmp_path, cfg, text, message):
    path = write(tmp_path, "x.yaml", text)
    with pytest.raises(UsageError) as caught:
        cfg.merge_from_file(path)
    assert message.replace("{path}", path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_clone_shares_nothing_with_its_node(cfg):
    cfg.TRAINER.COOP.WORDS = ["a"]
    cfg.register_limit("TRAINER.COOP.N_CTX", Accepts(int))
    cfg.TRAINER.ALSO = cfg.TRAINER.COOP
    cfg.freeze()
    again = cfg.clone()
    assert again.TRAINER.ALSO is again.TRAINER.COOP
    assert again == cfg and again.TRAINER.COOP.is_frozen()
    assert [type(again.TRAINER.COOP), type(again.OPTIM)] == [YacsNode, CfgNode]
    again.defrost()
    again.TRAINER.COOP.WORDS.append("b")
    again.register_limit("TRAINER.COOP.N_CTX", Accepts(str))
    assert cfg.TRAINER.COOP.WORDS == ["a"] and cfg.TRAINER.COOP.is_frozen()
    cfg.defrost()
    cfg.merge_from_list(["TRAINER.COOP.N_CTX", 4])


def test_text_in_the_form_of_a_number_stays_text_where_text_is_wanted(tmp_path, cfg):
    for cfg.OUTPUT_DIR in ("7", "(1, 2)"):
        again = cfg.clone()
        again.OUTPUT_DIR = ""
        again.merge_from_file(write(tmp_path, "x.yaml", cfg.dump()))
        assert again.OUTPUT_DIR == cfg.OUTPUT_DIR
        # Of a command line
        again.merge_from_list(["OUTPUT_DIR", f"'{cfg.OUTPUT_DIR}'", "RESUME", cfg.OUTPUT_DIR])
        assert again.OUTPUT_DIR == again.RESUME == cfg.OUTPUT_DIR
    for word in ("None", "True"):
        with pytest.raises(UsageError, match=f"OUTPUT_DIR is {word}: give text"):
            cfg.merge_from_list(["OUTPUT_DIR", word])


def test_base_files_are_overridden_in_order_and_named_in_errors(tmp_path, cfg):
    (tmp_path / "sub").mkdir()
    write(tmp_path, "a.yaml", "OPTIM: {LR: 0.1, NAME: sgd, MAX_EPOCH: 1}\n")
    write(tmp_path, "b.yaml", "_BASE_: a.yaml\nOPTIM: {LR: 0.2, MAX_EPOCH: 2}\n")
    write(tmp_path, "c.yaml", "SEED: 7\n")
    cfg.merge_from_file(
        write(tmp_path / "sub", "d.yaml", "_BASE_: [../b.yaml, ../c.yaml]\nOPTIM: {LR: 0.3}\n")
    )
    assert (cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH, cfg.OPTIM.NAME, cfg.SEED) == (0.3, 2, "sgd", 7)
    write(tmp_path, "a.yaml", "OPTIM: {LRR: 0.1}\n")
    with pytest.raises(UsageError, match=r"OPTIM\.LRR in .*a\.yaml"):
        cfg.merge_from_file(tmp_path / "b.yaml")
    with pytest.raises(MissingFileError, match="gone.yaml"):
        cfg.merge_from_file(write(tmp_path, "c.yaml", "_BASE_: gone.yaml\n"))


def test_clean_cfg_removes_other_trainers(cfg):
    clean_cfg(cfg, "CoOp")
    assert set(cfg.TRAINER) == {"NAME", "COOP"}
    clean_cfg(cfg, "ZeroshotCLIP")
    assert set(cfg.TRAINER) == {"NAME"}


# The values that each option accepts: checked when a value is merged and when a config is frozen,
# in one line.


def with_value(name, value):
    """The defaults with one value that is set without a check."""
    cfg = get_cfg_default()
    *groups, key = name.split(".")
    reduce(getitem, groups, cfg)[key] = value
    return cfg


def test_defaults_are_accepted_and_none_and_nan_are_not():
    get_cfg_default().freeze()
    for name, (_, limit, *_) in SETTINGS.items():
        assert limit
        for value in (None, float("nan")):
            with pytest.raises(UsageError, match=f"^{name} is .*: give "):
                with_value(name, value).freeze()


def test_a_project_registers_its_own_limits_and_removes_others():
    cfg = get_cfg_default()
    cfg.TRAINER.MINE = YacsNode({"DEPTH": 9})
    cfg.register_limit("TRAINER.MINE.DEPTH", Accepts(int, 1, 12))
    cfg.register_limit("OPTIM.NAME", None)
    cfg.merge_from_list(["OPTIM.NAME", "mine"])
    cfg.TRAINER.ALSO = cfg.TRAINER.MINE  # the same group under another name
    for name in ("MINE", "ALSO"):
        with pytest.raises(
            UsageError, match=f"^TRAINER.{name}.DEPTH is 13: give an integer from 1 to 12$"
        ):
            cfg.merge_from_list([f"TRAINER.{name}.DEPTH", 13])
    cfg.TRAINER.MINE.DEPTH = 13
    with pytest.raises(UsageError, match="^TRAINER.MINE.DEPTH is 13"):
        cfg.clone().freeze()
    cfg.TRAINER.MINE = YacsNode({"WORDS": "a\0b"})
    with pytest.raises(
        UsageError, match="^TRAINER.MINE.WORDS is 'a.x00b': give text .* without control"
    ):
        cfg.freeze()


# YAML files that are damaged or hostile: one line that names the file, soon.

LEVELS = range(1, 24)
HOSTILE = {
    "anchor bomb": (
        "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in LEVELS),
        "more than 20,000 values",
    ),
    "merge bomb": (
        "a0: &a0 {x: 1, y: 2}\n"
        + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in LEVELS),
        "more than 20,000 values",
    ),
    "deep flow": ("a: " + "[" * 50_000, "is invalid YAML ("),
    "!!int x": (
        "SEED: 1\nOPTIM:\n  MAX_EPOCH: !!int x\n",
        "is invalid YAML (invalid literal for int",
    ),
    "Python object": (
        "SEED: !!python/object/apply:os.system [ls]",
        "could not determine a constructor",
    ),
}


def merge(file):
    get_cfg_default().merge_from_file(str(file))


@pytest.mark.parametrize("loader", [yaml_text.Loader, yaml.SafeLoader], ids=["libyaml", "python"])
@pytest.mark.parametrize(("text", "words"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_yaml_is_refused_in_a_line_at_once(text, words, loader, tmp_path, monkeypatch):
    monkeypatch.setattr(yaml_text, "Loader", loader)
    file = tmp_path / "x.yaml"
    file.write_text(text)
    start = time.process_time()
    with pytest.raises(UsageError, match=rf"^{file}") as caught:
        merge(file)
    assert (
        words in str(caught.value)
        and "\n" not in str(caught.value)
        and len(str(caught.value)) < 500
    )
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    "text", ["A: 1\nB: 2\nA: 1\n", "B: [{A: 1, 'A': 2}]", "C: &c {A: {B: 1, B: 2}}\nD: *c\n"]
)
def test_a_repeated_key(text, tmp_path):
    with pytest.raises(UsageError, match="line [13] is invalid YAML .the key [AB] is there twice"):
        CfgNode.load_cfg(text)
    (tmp_path / "x.yaml").write_text(text)
    cfg = CfgNode(new_allowed=True)
    # As with yacs, the last one counts: published files load
    cfg.merge_from_file(str(tmp_path / "x.yaml"))
    assert cfg


def test_base_is_the_path_of_a_file_and_files_end(tmp_path):
    file = tmp_path / "x.yaml"
    for i in range(30):
        (tmp_path / f"{i}.yaml").write_text(f"_BASE_: [{i + 1}.yaml, {i + 1}.yaml]\n")
    (tmp_path / "30.yaml").write_text("SEED: 1\n")
    file.write_text("_BASE_: x.yaml\n")
    for name in ("0.yaml", "x.yaml"):
        with pytest.raises(
            UsageError,
            match=rf"{name} includes more than 100 files, or itself: drop some of _BASE_",
        ):
            merge(tmp_path / name)
    file.write_text("_BASE_: [1]\n")
    with pytest.raises(UsageError, match="_BASE_ in .* is 1: give the path of a file, or a list"):
        merge(file)


def test_load_cfg_reads_yaml_and_executes_nothing(tmp_path):
    file = tmp_path / "x.py"
    for text, words in (
        (f"cfg = dict(a=open({str(tmp_path / 'made')!r}, 'w').close())\n", "x.py is not a config"),
        ("A: {B: 2024-01-01}", "x.py is not a config: Key A.B"),
    ):
        file.write_text(text)
        with open(file) as opened, pytest.raises(UsageError, match=words):
            CfgNode.load_cfg(opened)
    assert not (tmp_path / "made").exists()
    assert (CfgNode.load_cfg(""), CfgNode.load_cfg("SEED: 7\n")) == ({}, {"SEED": 7})
