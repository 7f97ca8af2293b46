"""Configuration: defaults, merging, and errors that name the key."""

import pytest
from dassl.config import CfgNode, clean_cfg, get_cfg_default
from dassl.utils import MissingFileError, UsageError
from yacs.config import CfgNode as YacsNode


@pytest.fixture
def cfg():
    """The defaults, and options added as in published ``train.py`` scripts: plain yacs nodes."""
    cfg = get_cfg_default()
    cfg.TRAINER.COOP = YacsNode()
    cfg.TRAINER.COOP.N_CTX = 16
    cfg.TRAINER.COOP.CTX_INIT = ""
    cfg.TRAINER.MAPLE = YacsNode({"PROMPT_DEPTH": 9})
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"
    return cfg


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return str(path)


def test_defaults_are_the_published_ones():
    cfg = get_cfg_default()
    assert set(cfg) == {
        *("VERSION", "OUTPUT_DIR", "RESUME", "SEED", "CACHE", "CACHE_GB", "USE_CUDA", "VERBOSE", "INPUT", "DATASET"),
        *("DATALOADER", "MODEL", "OPTIM", "TRAIN", "TEST", "TRAINER"),
    }
    assert cfg.DATALOADER.TRAIN_U == {"SAME_AS_X": True, **cfg.DATALOADER.TRAIN_X}
    assert cfg.DATALOADER.TRAIN_X == {"SAMPLER": "RandomSampler", "BATCH_SIZE": 32, "N_DOMAIN": 0, "N_INS": 16}
    assert (cfg.OPTIM.NAME, cfg.OPTIM.LR, cfg.OPTIM.WEIGHT_DECAY) == ("adam", 0.0003, 5e-4)
    assert (cfg.OPTIM.STEPSIZE, cfg.OPTIM.WARMUP_EPOCH, cfg.OPTIM.WARMUP_TYPE) == ((-1,), -1, "linear")
    assert (len(cfg.INPUT), len(cfg.DATASET), len(cfg.OPTIM), len(cfg.TEST)) == (23, 11, 22, 6)


def test_defaults_are_copied():
    get_cfg_default().OPTIM.LR = 1.0
    assert get_cfg_default().OPTIM.LR == 0.0003


def test_published_yaml_loads(tmp_path, cfg):
    path = write(
        tmp_path,
        "vit_b16.yaml",
        "DATALOADER:\n  TRAIN_X:\n    BATCH_SIZE: 4\n  NUM_WORKERS: 8\n"
        "INPUT:\n  SIZE: (224, 224)\n  INTERPOLATION: bicubic\n  PIXEL_MEAN: [0.48, 0.45, 0.40]\n"
        '  TRANSFORMS: ["random_resized_crop", "random_flip", "normalize"]\n'
        "OPTIM:\n  NAME: sgd\n  LR: 0.0035\n  WARMUP_CONS_LR: 1e-5\n"
        'TRAINER:\n  COOP:\n    N_CTX: 4\n    CTX_INIT: "a photo of a"\n',
    )
    cfg.merge_from_file(path)
    assert cfg.INPUT.SIZE == (224, 224) and cfg.INPUT.TRANSFORMS == ("random_resized_crop", "random_flip", "normalize")
    assert cfg.OPTIM.WARMUP_CONS_LR == 1e-5 and cfg.DATALOADER.TRAIN_X.BATCH_SIZE == 4
    assert dict(cfg.TRAINER.COOP) == {"N_CTX": 4, "CTX_INIT": "a photo of a"}


def test_dump_clone_and_freeze(tmp_path, cfg):
    cfg.merge_from_list(["TRAINER.COOP.N_CTX", "4", "OPTIM.LR", "0.01", "DATASET.SUBSAMPLE_CLASSES", "base"])
    again = get_cfg_default()
    again.TRAINER.COOP = YacsNode({"N_CTX": 16, "CTX_INIT": ""})
    again.TRAINER.MAPLE = YacsNode({"PROMPT_DEPTH": 9})
    again.DATASET.SUBSAMPLE_CLASSES = "all"
    again.merge_from_file(write(tmp_path, "dump.yaml", cfg.dump()))
    assert again == cfg
    twin = cfg.clone()
    cfg.freeze()
    with pytest.raises(AttributeError):
        cfg.TRAINER.COOP.N_CTX = 8
    twin.TRAINER.COOP.N_CTX = 8
    assert cfg.TRAINER.COOP.N_CTX == 4


def test_merge_from_other_node_names_unknown_keys(cfg):
    cfg.merge_from_other_cfg(YacsNode({"TRAINER": {"COOP": {"N_CTX": 2}}}))
    assert cfg.TRAINER.COOP.N_CTX == 2
    with pytest.raises(KeyError) as caught:
        cfg.merge_from_other_cfg(CfgNode({"TRAINER": {"COOP": {"N_CTXS": 2}}}))
    assert str(caught.value) == "unknown config key TRAINER.COOP.N_CTXS in the config; did you mean TRAINER.COOP.N_CTX?"


@pytest.mark.parametrize(
    ("key", "closest"),
    [
        ("OPTIM.LRR", "OPTIM.LR"),
        ("OPTIM.lr", "OPTIM.LR"),
        ("LR", "OPTIM.LR"),
        ("OPTIMIZER", "OPTIM"),
        ("OPTIM.LR.X", "OPTIM.LR"),
        ("OPTIM.NAME.X", "OPTIM.NAME"),
        ("DATALOADER.TRAINX", "DATALOADER.TRAIN_X"),
        ("TRAINER.COOP.NCTX", "TRAINER.COOP.N_CTX"),
        ("TRAINER.MAPLE.DEPTH", "TRAINER.MAPLE.PROMPT_DEPTH"),
        ("DATASET.SUBSAMPLE", "DATASET.SUBSAMPLE_CLASSES"),
        ("TRAINERS", "TRAINER"),
    ],
)
def test_unknown_key_names_the_closest(tmp_path, cfg, key, closest):
    with pytest.raises(UsageError) as caught:
        cfg.merge_from_list([key, "1"])
    assert isinstance(caught.value, KeyError)
    assert str(caught.value) == f"unknown config key {key} in the given options; did you mean {closest}?"

    text = "".join(f"{'  ' * depth}{part}:\n" for depth, part in enumerate(key.split(".")))[:-1] + " 1\n"
    path = write(tmp_path, "x.yaml", text)
    if key not in ("OPTIM.LR.X", "OPTIM.NAME.X"):  # in a file this is a value of the wrong type
        with pytest.raises(KeyError) as caught:
            cfg.merge_from_file(path)
        assert str(caught.value) == f"unknown config key {key} in {path}; did you mean {closest}?"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["OPTIM.LR", "fast"], "OPTIM.LR in the given options takes a float, not a str"),
        (["OPTIM.LR", "1"], "OPTIM.LR in the given options takes a float, not an int (write 1.0 for 1)"),
        (["OPTIM", "{}"], "OPTIM in the given options takes a group of keys, not a str"),
        (["OPTIM", "5"], "OPTIM in the given options takes a group of keys, not an int"),
        (["OPTIM.LR"], "config options come in pairs (KEY value), but these are 1: ['OPTIM.LR']"),
    ],
)
def test_wrong_values_in_a_list_are_refused(cfg, options, message):
    with pytest.raises(UsageError) as caught:
        cfg.merge_from_list(options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("OPTIM:\n  LR: [0.1]\n", "OPTIM.LR in {path} takes a float, not a list"),
        ("OPTIM: 5\n", "OPTIM in {path} takes a group of keys, not an int"),
        ("OPTIM:\n  LR: {{A: 1}}\n".replace("{{", "{").replace("}}", "}"), "OPTIM.LR in {path} takes a float"),
        ("OPTIM:\n  LR: 0.1\n NAME: sgd\n", "{path} line 3 is invalid YAML"),
        ("OPTIM: [1, 2\n", "is invalid YAML"),
        ("- a\n- b\n", "{path} is not a config"),
        ("just words", "{path} is not a config"),
        ("1: 2\n", "{path} is not a config"),
        ("OPTIM:\n  1: 2\n", "{path}"),
        ("SEED: 2024-01-01\n", "SEED"),
    ],
)
def test_damaged_files_give_one_line_errors(tmp_path, cfg, text, message):
    path = write(tmp_path, "x.yaml", text)
    with pytest.raises(UsageError) as caught:
        cfg.merge_from_file(path)
    assert message.replace("{path}", path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_and_unreadable_files_are_errors(tmp_path, cfg):
    with pytest.raises(MissingFileError, match="nowhere.yaml"):
        cfg.merge_from_file(str(tmp_path / "nowhere.yaml"))
    for path in ("", " ", "a\0b"):
        with pytest.raises(UsageError, match="is not the path of a config file"):
            cfg.merge_from_file(path)
    with pytest.raises(UsageError, match=f"cannot read the config file {tmp_path}: it is a folder"):
        cfg.merge_from_file(str(tmp_path))
    (tmp_path / "x.yaml").write_bytes(b"OPTIM:\n  NAME: \xff\xfe\n")
    with pytest.raises(UsageError, match="cannot read"):
        cfg.merge_from_file(str(tmp_path / "x.yaml"))


def test_braces_are_text(cfg):
    cfg.merge_from_list(["TRAINER.COOP.CTX_INIT", "{}"])
    assert cfg.TRAINER.COOP.CTX_INIT == "{}"


def test_failed_merge_changes_nothing(tmp_path, cfg):
    before = cfg.clone()
    path = write(tmp_path, "x.yaml", "SEED: 7\nOPTIM:\n  NAME: sgd\n  LR: fast\n")
    for merge in (
        lambda: cfg.merge_from_file(path),
        lambda: cfg.merge_from_list(["SEED", 7, "OPTIM.LR", "fast"]),
        lambda: cfg.merge_from_other_cfg(CfgNode({"SEED": 7, "OPTIM": {"LRR": 0.1}})),
    ):
        with pytest.raises(UsageError):
            merge()
        assert cfg == before


def test_none_takes_and_replaces_any_type(cfg):
    cfg.TRAINER.COOP.EXTRA = None
    for value in (1, [1, 2], (1,), "text", 0.5, None):
        copy = cfg.clone()
        copy.merge_from_other_cfg(CfgNode({"TRAINER": {"COOP": {"EXTRA": value}}}))
        assert copy.TRAINER.COOP.get("EXTRA") == value
    cfg.merge_from_list(["OPTIM.LR", "None"])
    assert cfg.OPTIM.LR is None


def test_merged_values_are_copies(cfg):
    sizes = [1, 2]
    cfg.merge_from_other_cfg(CfgNode({"INPUT": {"PIXEL_MEAN": sizes}}))
    sizes.append(3)
    assert cfg.INPUT.PIXEL_MEAN == [1, 2]


def test_new_keys_are_accepted_if_allowed(tmp_path, cfg):
    text = "OPTIM:\n  NEW: 1\nGROUP:\n  SUB:\n    A: (1, 2)\n"
    with pytest.raises(UsageError, match="unknown config key OPTIM.NEW"):
        cfg.merge_from_file(write(tmp_path, "a.yaml", text))
    cfg.set_new_allowed(True)
    cfg.merge_from_file(write(tmp_path, "a.yaml", text))
    cfg.merge_from_other_cfg(CfgNode({"GROUP": {"SUB": {"B": 2}}}))
    assert cfg.OPTIM.NEW == 1 and cfg.GROUP.SUB == {"A": (1, 2), "B": 2}
    with pytest.raises(UsageError, match=r"DAY in .* takes a plain value, not a datetime\.date"):
        cfg.merge_from_file(write(tmp_path, "b.yaml", "DAY: 2024-01-01\n"))
    with pytest.raises(UsageError, match="unknown config key OPTIM.NEWER"):
        cfg.merge_from_list(["OPTIM.NEWER", 1])


def test_empty_file_changes_nothing(tmp_path, cfg):
    before = cfg.clone()
    cfg.merge_from_file(write(tmp_path, "x.yaml", "# nothing\n"))
    assert cfg == before


def test_yacs_deprecated_and_renamed_keys(tmp_path, cfg):
    cfg.register_deprecated_key("OPTIM.OLD")
    cfg.register_renamed_key("OPTIM.LEARNING_RATE", "OPTIM.LR")
    cfg.merge_from_list(["OPTIM.OLD", "1"])
    cfg.merge_from_file(write(tmp_path, "x.yaml", "OPTIM:\n  OLD: 1\n"))
    for merge in (
        lambda: cfg.merge_from_list(["OPTIM.LEARNING_RATE", "1"]),
        lambda: cfg.merge_from_file(write(tmp_path, "y.yaml", "OPTIM:\n  LEARNING_RATE: 1\n")),
    ):
        with pytest.raises(UsageError, match="was renamed to OPTIM.LR"):
            merge()


def test_base_files_are_overridden_in_order(tmp_path, cfg):
    (tmp_path / "sub").mkdir()
    write(tmp_path, "a.yaml", "OPTIM:\n  LR: 0.1\n  NAME: sgd\n  MAX_EPOCH: 1\n")
    write(tmp_path, "b.yaml", "_BASE_: a.yaml\nOPTIM:\n  LR: 0.2\n  MAX_EPOCH: 2\n")
    write(tmp_path, "c.yaml", "SEED: 7\n")
    cfg.merge_from_file(write(tmp_path / "sub", "d.yaml", "_BASE_: [../b.yaml, ../c.yaml]\nOPTIM:\n  LR: 0.3\n"))
    assert (cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH, cfg.OPTIM.NAME, cfg.SEED) == (0.3, 2, "sgd", 7)


def test_list_replaces_int_of_base_file_if_default_is_none(tmp_path, cfg):
    cfg.TRAINER.COOP.DEPTHS = None
    write(tmp_path, "a.yaml", "TRAINER:\n  COOP:\n    DEPTHS: 2\n    N_CTX: 4\n")
    cfg.merge_from_file(write(tmp_path, "b.yaml", "_BASE_: a.yaml\nTRAINER:\n  COOP:\n    DEPTHS: [1, 2]\n"))
    assert (cfg.TRAINER.COOP.DEPTHS, cfg.TRAINER.COOP.N_CTX) == ([1, 2], 4)


def test_base_errors_name_the_file(tmp_path, cfg):
    write(tmp_path, "a.yaml", "OPTIM:\n  LRR: 0.1\n")
    with pytest.raises(UsageError, match=r"OPTIM\.LRR in .*a\.yaml"):
        cfg.merge_from_file(write(tmp_path, "b.yaml", "_BASE_: a.yaml\n"))
    write(tmp_path, "type.yaml", "OPTIM:\n  LR: fast\n")
    with pytest.raises(UsageError, match=r"OPTIM\.LR in .*type\.yaml takes a float"):
        cfg.merge_from_file(write(tmp_path, "b.yaml", "_BASE_: type.yaml\nOPTIM:\n  NAME: sgd\n"))
    with pytest.raises(MissingFileError, match="gone.yaml"):
        cfg.merge_from_file(write(tmp_path, "c.yaml", "_BASE_: gone.yaml\n"))


def test_base_cycle_is_an_error(tmp_path, cfg):
    write(tmp_path, "a.yaml", "_BASE_: b.yaml\n")
    with pytest.raises(UsageError, match=r"b\.yaml -> a\.yaml -> b\.yaml"):
        cfg.merge_from_file(write(tmp_path, "b.yaml", "_BASE_: ./a.yaml\n"))
    with pytest.raises(UsageError, match=r"c\.yaml -> c\.yaml"):
        cfg.merge_from_file(write(tmp_path, "c.yaml", "_BASE_: c.yaml\n"))


def test_clean_cfg_removes_other_trainers(cfg):
    clean_cfg(cfg, "CoOp")
    assert set(cfg.TRAINER) == {"NAME", "COOP"}
    clean_cfg(cfg, "ZeroshotCLIP")
    assert set(cfg.TRAINER) == {"NAME"}
