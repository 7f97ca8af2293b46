"""The limits of each option: checked when a config is frozen, in one line."""

import pickle

import pytest
from dassl.config import CfgNode, get_cfg_default
from dassl.config.defaults import LIMITS
from dassl.config.limits import Integer, Text
from dassl.utils import UsageError


def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def frozen(*options):
    cfg = get_cfg_default()
    cfg.merge_from_list(options)
    cfg.freeze()
    return cfg


OPTIONS = dict(leaves(get_cfg_default()))
UNREAD = {  # options of the published Dassl that do nothing here; texts and flags have a limit all the same
    *(f"INPUT.{key}" for key in ("CUTOUT_N", "CUTOUT_LEN", "GN_MEAN", "GN_STD")),
    *(f"DATASET.{key}" for key in ("NUM_LABELED", "VAL_PERCENT", "STL10_FOLD", "CIFAR_C_LEVEL")),
    *(f"DATALOADER.{group}.{key}" for group in ("TRAIN_X", "TRAIN_U") for key in ("N_DOMAIN", "N_INS")),
    *("MODEL.HEAD.HIDDEN_LAYERS", "MODEL.HEAD.DROPOUT"),
}


@pytest.mark.parametrize("name", sorted(set(OPTIONS) - UNREAD))
def test_every_option_has_a_limit_and_its_default_is_valid(name):
    limit = get_cfg_default().__dict__["__limits__"][name]
    assert limit.accepts(OPTIONS[name]) and not limit.accepts(None) and not limit.accepts(float("nan"))


def test_limits_are_those_of_options():
    assert set(LIMITS) <= set(OPTIONS) - UNREAD
    assert set(OPTIONS) >= UNREAD


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("OPTIM.LR", -1.0, "a number from 0 to 1,000"),
        ("OPTIM.LR", float("nan"), "a number from 0 to 1,000"),
        ("OPTIM.LR", float("inf"), "a number from 0 to 1,000"),
        ("OPTIM.LR", None, "a number from 0 to 1,000"),
        ("OPTIM.MOMENTUM", -5.0, "a number from 0 to 1"),
        ("OPTIM.ADAM_BETA1", 1.0, "a number from 0 to 0.999999"),
        ("OPTIM.STEPSIZE", (), "a list of 1 to 1,000 values, each an integer from -1 to 100,000"),
        ("OPTIM.STEPSIZE", (5, "x"), "each an integer from -1 to 100,000"),
        ("OPTIM.MAX_EPOCH", 0, "an integer from 1 to 100,000"),
        ("OPTIM.MAX_EPOCH", -1, "an integer from 1 to 100,000"),
        ("OPTIM.NAME", "sdg", "one of adam, amsgrad, sgd, rmsprop, radam, adamw; did you mean sgd?"),
        ("OPTIM.LR_SCHEDULER", "cosin", "one of single_step, multi_step, cosine; did you mean cosine?"),
        ("DATALOADER.TRAIN_X.BATCH_SIZE", 0, "an integer from 1 to 1,000,000"),
        ("DATALOADER.TRAIN_X.BATCH_SIZE", -1, "an integer from 1 to 1,000,000"),
        ("DATALOADER.TEST.BATCH_SIZE", 0, "an integer from 1 to 1,000,000"),
        ("DATALOADER.TEST.BATCH_SIZE", -1, "an integer from 1 to 1,000,000"),
        ("DATALOADER.TEST.SAMPLER", "Random", "did you mean RandomSampler?"),
        ("DATALOADER.NUM_WORKERS", -1, "an integer from 0 to 256"),
        ("DATALOADER.NUM_WORKERS", 100_000, "an integer from 0 to 256"),
        ("DATALOADER.K_TRANSFORMS", 0, "an integer from 1 to 100"),
        ("INPUT.SIZE", (64,), "a list of 2 values, each an integer from 1 to 4,096"),
        ("INPUT.SIZE", (0, 64), "a list of 2 values, each an integer from 1 to 4,096"),
        ("INPUT.SIZE", (64.0, 64), "a list of 2 values, each an integer from 1 to 4,096"),
        ("INPUT.SIZE", (True, True), "a list of 2 values, each an integer from 1 to 4,096"),
        ("INPUT.PIXEL_STD", [0.0, 0.0, 0.0], "a list of 3 values, each a number from 0.001 to 1,000"),
        ("INPUT.RRCROP_SCALE", (2, 1), "a list of 2 values in ascending order, each a number from 0.0001 to 1"),
        ("INPUT.RRCROP_SCALE", (0.9, 0.1), "in ascending order"),
        ("INPUT.GB_K", 4, "an integer from 1 to 999 (odd)"),
        ("INPUT.TRANSFORMS", ("normalize", "random_flop"), "did you mean random_flip?"),
        ("INPUT.TRANSFORMS", "normalize", "each one of random_flip, random_resized_crop"),
        ("DATASET.NUM_SHOTS", 0, "an integer from -1 to 1,000,000 (-1 for all images, not 0)"),
        ("DATASET.NUM_SHOTS", -2, "-1 for all images"),
        ("DATASET.ROOT", None, "text of at most 4,096 characters"),
        ("DATASET.ROOT", "a\0b", "without NUL"),
        ("OUTPUT_DIR", "caf\udce9", "bytes that are not UTF-8"),
        ("OUTPUT_DIR", "x" * 5000, "text of at most 4,096 characters"),
        ("USE_CUDA", None, "True or False"),
        ("SEED", 2**33, "an integer from -1 to 4,294,967,295 (-1: not seeded)"),
        ("SEED", -3, "an integer from -1 to 4,294,967,295"),
        ("TRAIN.PRINT_FREQ", 0, "an integer from 1 to 1,000,000"),
        ("TEST.SPLIT", "foo", "one of test, val"),
        ("TEST.FINAL_MODEL", "foo", "one of last_step, best_val"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_value_out_of_range_is_refused_with_key_value_and_range(name, value, accepted):
    cfg = get_cfg_default()
    *groups, key = name.split(".")
    node = cfg
    for group in groups:
        node = node[group]
    node[key] = value
    with pytest.raises(UsageError) as caught:
        cfg.freeze()
    text = str(caught.value)
    assert text.startswith(f"{name} is ") and ": give " in text and accepted in text, text
    assert "\n" not in text and len(text) < 500
    assert not cfg.is_frozen()


@pytest.mark.parametrize(
    "options",
    [
        ("SEED", -1, "DATASET.NUM_SHOTS", -1, "OPTIM.WARMUP_EPOCH", 0, "TRAIN.CHECKPOINT_FREQ", 0),
        ("SEED", 2**32 - 1, "OPTIM.LR", 0.0, "OPTIM.STEPSIZE", (2500,), "DATASET.STL10_FOLD", 0),
        ("DATALOADER.K_TRANSFORMS", 2, "DATALOADER.TRAIN_X.SAMPLER", "SequentialSampler", "DATASET.NUM_LABELED", 4000),
        ("INPUT.PIXEL_MEAN", [0, 0, 0], "INPUT.PIXEL_STD", [1, 1, 1], "MODEL.HEAD.HIDDEN_LAYERS", (512, 512)),
        ("OUTPUT_DIR", "'結果/é à'", "INPUT.RRCROP_SCALE", (0.5, 1.0), "DATASET.SOURCE_DOMAINS", ["amazon", "dslr"]),
    ],
)
def test_published_and_sound_values_are_accepted(options):
    assert frozen(*options).is_frozen()


def test_a_project_registers_its_own_limits_and_removes_others():
    cfg = get_cfg_default()
    cfg.TRAINER.MINE = CfgNode({"DEPTH": 9})
    cfg.register_limit("TRAINER.MINE.DEPTH", Integer(1, 12))
    cfg.register_limit("OPTIM.NAME", None)
    cfg.OPTIM.NAME = "mine"
    cfg.clone().freeze()
    cfg.TRAINER.MINE.DEPTH = 13
    with pytest.raises(UsageError, match="^TRAINER.MINE.DEPTH is 13: give an integer from 1 to 12$"):
        cfg.freeze()
    del cfg.TRAINER["MINE"]  # as `clean_cfg` does with sections of other trainers
    cfg.freeze()


def test_a_config_with_limits_can_be_pickled():
    """A data loader whose workers are spawned does it."""
    cfg = pickle.loads(pickle.dumps(frozen("SEED", 3)))
    assert cfg.SEED == 3 and cfg.is_frozen()


def test_limits_of_one_config_are_not_those_of_another():
    cfg = get_cfg_default()
    cfg.register_limit("OUTPUT_DIR", None)
    assert isinstance(get_cfg_default().__dict__["__limits__"]["OUTPUT_DIR"], Text)
