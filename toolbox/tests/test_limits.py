"""The values that each option accepts: checked when a value is merged and when a config is frozen, in one line."""

from functools import reduce
from operator import getitem

import pytest
from dassl.config import get_cfg_default
from dassl.config.defaults import SETTINGS
from dassl.utils import UsageError
from yacs.config import CfgNode as YacsNode

from common.schema import Accepts


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


INVALID = [("OPTIM.LR", -1.0), ("OPTIM.LR", True), ("OPTIM.STEPSIZE", ()), ("OPTIM.STEPSIZE", (5, "x"))]
INVALID += [("OPTIM.MAX_EPOCH", 1.0), ("OPTIM.NAME", "sdg"), ("INPUT.SIZE", (64,)), ("INPUT.RRCROP_SCALE", (0.9, 0.1))]
INVALID += [("INPUT.GB_K", 4), ("INPUT.TRANSFORMS", "normalize"), ("DATASET.NUM_SHOTS", 0), ("USE_CUDA", 1)]
INVALID += [("OUTPUT_DIR", text) for text in ("caf\udce9", "a\x1b[2J", "x" * 5000)]


@pytest.mark.parametrize(("name", "value"), INVALID, ids=lambda value: ascii(value)[:30])
def test_an_invalid_value_is_refused_with_its_key_and_what_it_accepts(name, value):
    cfg = get_cfg_default()
    for refuse in (lambda: cfg.merge_from_list([name, value]), with_value(name, value).freeze):
        with pytest.raises(UsageError) as caught:
            refuse()
        assert str(caught.value).startswith(f"{name} is ") and str(caught.value).endswith(f"give {SETTINGS[name][1]}")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert cfg == get_cfg_default() and not cfg.is_frozen()


def test_a_project_registers_its_own_limits_and_removes_others():
    cfg = get_cfg_default()
    cfg.TRAINER.MINE = YacsNode({"DEPTH": 9})
    cfg.register_limit("TRAINER.MINE.DEPTH", Accepts(int, 1, 12))
    cfg.register_limit("OPTIM.NAME", None)
    cfg.merge_from_list(["OPTIM.NAME", "mine"])
    cfg.TRAINER.ALSO = cfg.TRAINER.MINE  # the same group under another name
    for name in ("MINE", "ALSO"):
        with pytest.raises(UsageError, match=f"^TRAINER.{name}.DEPTH is 13: give an integer from 1 to 12$"):
            cfg.merge_from_list([f"TRAINER.{name}.DEPTH", 13])
    cfg.TRAINER.MINE.DEPTH = 13
    with pytest.raises(UsageError, match="^TRAINER.MINE.DEPTH is 13"):
        cfg.clone().freeze()
    cfg.TRAINER.MINE = YacsNode({"WORDS": "a\0b"})
    with pytest.raises(UsageError, match="^TRAINER.MINE.WORDS is 'a.x00b': give text .* without control"):
        cfg.freeze()
