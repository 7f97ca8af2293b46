"""Configuration: defaults, merging, and errors that name the key."""

import pytest
from dassl.config import CfgNode, clean_cfg, get_cfg_default
from dassl.utils import MissingFileError, UnknownNameError, UsageError
from yacs.config import CfgNode as YacsNode


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
    assert groups == {"INPUT", "DATASET", "DATALOADER", "MODEL", "OPTIM", "TRAIN", "TEST", "TRAINER"} and len(cfg) == 16
    assert cfg.DATALOADER.TRAIN_U == {"SAME_AS_X": True, **cfg.DATALOADER.TRAIN_X}
    assert cfg.DATALOADER.TRAIN_X == {"SAMPLER": "RandomSampler", "BATCH_SIZE": 32, "N_DOMAIN": 0, "N_INS": 16}
    assert (cfg.OPTIM.NAME, cfg.OPTIM.LR, cfg.OPTIM.WEIGHT_DECAY) == ("adam", 0.0003, 5e-4)
    assert (cfg.OPTIM.STEPSIZE, cfg.OPTIM.WARMUP_EPOCH, cfg.OPTIM.WARMUP_TYPE) == ((-1,), -1, "linear")
    assert (len(cfg.INPUT), len(cfg.DATASET), len(cfg.OPTIM), len(cfg.TEST)) == (24, 11, 22, 6)  # one of INPUT is ours


def test_published_yaml_loads(tmp_path, cfg):
    text = (
        "DATALOADER: {TRAIN_X: {BATCH_SIZE: 4}}\n"
        'INPUT:\n  SIZE: (224, 224)\n  TRANSFORMS: ["random_resized_crop", "random_flip", "normalize"]\n'
        'OPTIM: {WARMUP_CONS_LR: 1e-5}\nTRAINER:\n  COOP:\n    N_CTX: 4\n    CTX_INIT: "a photo of a"\n'
    )
    cfg.merge_from_file(write(tmp_path, "vit_b16.yaml", text))
    assert cfg.INPUT.SIZE == (224, 224) and cfg.INPUT.TRANSFORMS == ("random_resized_crop", "random_flip", "normalize")
    assert cfg.OPTIM.WARMUP_CONS_LR == 1e-5 and cfg.DATALOADER.TRAIN_X.BATCH_SIZE == 4
    assert dict(cfg.TRAINER.COOP) == {"N_CTX": 4, "CTX_INIT": "a photo of a"}


@pytest.mark.parametrize(
    ("key", "closest"),
    [("LR", "OPTIM.LR"), ("OPTIMIZER", "OPTIM"), ("TRAINER.MAPLE.DEPTH", "TRAINER.MAPLE.PROMPT_DEPTH")],
)
def test_unknown_key_names_the_closest(tmp_path, cfg, key, closest):
    text = "".join(f"{'  ' * depth}{part}:\n" for depth, part in enumerate(key.split(".")))[:-1] + " 1\n"
    path = write(tmp_path, "x.yaml", text)
    for merge, where in (
        (lambda: cfg.merge_from_list([key, "1"]), ""),
        (lambda: cfg.merge_from_file(path), f" in {path}"),
        (lambda: cfg.merge_from_other_cfg(CfgNode.load_cfg(text)), ""),
    ):
        with pytest.raises(UnknownNameError) as caught:
            merge()
        assert str(caught.value) == f"unknown config key {key}{where}; did you mean {closest}?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("OPTIM:\n  LR: [0.1]\n", "{path}: OPTIM.LR is [0.1]: give a number from 0 to 1,000"),
        ("OPTIM:\n  LR: 0.1\n NAME: sgd\n", "{path} line 3 is invalid YAML"),
        ("- a\n- b\n", "{path} is not a config"),
        ("TRAINER:\n  COOP:\n    CTX_INIT: 2024-01-01\n", "CTX_INIT is datetime.date(2024, 1, 1): give a value"),
    ],
)
def test_damaged_files_give_one_line_errors(tmp_path, cfg, text, message):
    path = write(tmp_path, "x.yaml", text)
    with pytest.raises(UsageError) as caught:
        cfg.merge_from_file(path)
    assert message.replace("{path}", path) in str(caught.value) and "\n" not in str(caught.value)


def test_text_that_looks_like_a_number_is_text_where_text_is_wanted(tmp_path, cfg):
    for cfg.OUTPUT_DIR in ("7", "(1, 2)"):
        again = cfg.clone()
        again.OUTPUT_DIR = ""
        again.merge_from_file(write(tmp_path, "x.yaml", cfg.dump()))
        assert again.OUTPUT_DIR == cfg.OUTPUT_DIR
        again.merge_from_list(["OUTPUT_DIR", f"'{cfg.OUTPUT_DIR}'", "RESUME", cfg.OUTPUT_DIR])  # of a command line
        assert again.OUTPUT_DIR == again.RESUME == cfg.OUTPUT_DIR
    for word in ("None", "True"):
        with pytest.raises(UsageError, match=f"OUTPUT_DIR is {word}: give text"):
            cfg.merge_from_list(["OUTPUT_DIR", word])


def test_base_files_are_overridden_in_order_and_named_in_errors(tmp_path, cfg):
    (tmp_path / "sub").mkdir()
    write(tmp_path, "a.yaml", "OPTIM: {LR: 0.1, NAME: sgd, MAX_EPOCH: 1}\n")
    write(tmp_path, "b.yaml", "_BASE_: a.yaml\nOPTIM: {LR: 0.2, MAX_EPOCH: 2}\n")
    write(tmp_path, "c.yaml", "SEED: 7\n")
    cfg.merge_from_file(write(tmp_path / "sub", "d.yaml", "_BASE_: [../b.yaml, ../c.yaml]\nOPTIM: {LR: 0.3}\n"))
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
