"""Whether a folder holds the run that somebody asks for."""

import re
from datetime import date

import pytest
import yaml
from drawn import arguments, cfg_from
from marks import of_json, one_line, to_json
from yacs.config import CfgNode

from common.errors import UsageError
from common.results import read_results
from measures.results import RECORDED
from runs.config import default_settings, flatten
from runs.folder import check_finished, check_same_settings

# Keys of later versions, with a value that is not the default.
LATER = {
    "DATASET.HOLD_OUT": True,
    "DATASET.FEWSHOT_FILE": "split.pkl",
    "DATASET.TEMPLATE": "a drawing of a {}.",
    "DATASET.SUBSAMPLE_CLASSES": "base",
    "TEST.MAX_IMAGES": 7,
    "TEST.SAVE_LOGITS": True,
    "INPUT.EXIF_ORIENTATION": False,
    "OPTIM.WARMUP_RECOUNT": False,
    "TRAINER.MPL.N_RM_OP": 0,
}


def begin(folder):
    """Make it the folder of a run that has saved an epoch."""
    (folder / "prompt_learner").mkdir(parents=True)
    (folder / "prompt_learner/model.pth.tar-1").touch()


@pytest.fixture
def folder(eurosat, tiny, tmp_path):
    """`folder(left_out)` -> the folder of a run whose version lacks this setting, and its
    arguments.
    """
    argv = arguments(eurosat, tiny, tmp_path / "run")
    cfg = cfg_from(*argv)
    begin(tmp_path / "run")

    def folder(left_out=""):
        settings = flatten(cfg)
        results = {key: settings[name] for key, name in RECORDED.items() if name != left_out}
        to_json(tmp_path / "run/results.json", results | {"weights_sha256": ""})
        tree = yaml.safe_load(cfg.dump())
        *groups, key = left_out.split(".")
        if key:
            node = tree
            for group in groups:
                node = node[group]
            del node[key]
        (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(tree))
        return tmp_path / "run", argv

    return folder


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("key", LATER)
def test_missing_setting_of_a_run_counts_as_its_default(key, finished, folder):
    _, argv = folder(key)
    default = default_settings("MPL")[key]
    check_same_settings(cfg_from(*argv, key, str(default)), finished)
    with one_line(f"holds a run with {key} "):
        check_same_settings(cfg_from(*argv, key, str(LATER[key])), finished)


@pytest.mark.parametrize("finished", [False, True])
def test_run_of_a_newer_version_is_refused(finished, folder):
    path, argv = folder()
    config = path / "config.yaml"
    config.write_text(config.read_text() + "LATER: 1\n")
    with one_line("the setting LATER, which this version does not have"):
        check_same_settings(cfg_from(*argv), finished)


def test_a_removed_setting_of_an_older_run_counts_if_it_did_something(folder):
    path, argv = folder()
    config = path / "config.yaml"
    text = config.read_text()
    config.write_text(text + "BANK: ''\n")
    check_same_settings(cfg_from(*argv), finished=True)
    config.write_text(text + "BANK: features\n")
    with one_line("the setting BANK, which this version does not have"):
        check_same_settings(cfg_from(*argv), finished=True)


def test_finished_run_without_its_settings_is_refused(folder):
    path, argv = folder()
    (path / "config.yaml").unlink()
    with one_line("config.yaml"):
        check_same_settings(cfg_from(*argv), finished=True)


@pytest.mark.parametrize("damage", ["seed", "shots", "rate", "weights", "config"])
def test_each_finished_run_of_a_study_is_compared_and_only_the_first_is_set_up(
    damage, folder, monkeypatch, tmp_path
):
    """A seed may be a number that other settings have, too."""
    path, argv = folder()
    equal = set()
    results = of_json(path / "results.json") | {"accuracy": 50.0}
    to_json(path / "results.json", results)
    check_finished(path, read_results(path), argv, equal)
    other = tmp_path / "other"
    argv = [word.replace(str(path), str(tmp_path / "other")) for word in argv]
    argv[argv.index("--seed") + 1] = "2"
    text = (
        (path / "config.yaml")
        .read_text()
        .replace("\nSEED: 1\n", "\nSEED: 2\n")
        .replace(str(path), str(other))
    )
    assert "NUM_SHOTS: 2\n" in text
    begin(other)

    def check(text, **changed):
        (other / "config.yaml").write_text(text)
        to_json(other / "results.json", results | {"seed": 2} | changed)
        check_finished(other, read_results(other), argv, equal)

    with monkeypatch.context() as patch:
        patch.setattr("runs.folder.setup_cfg", lambda args: pytest.fail("set up"))
        check(text)
    changed = {
        "seed": {"seed": 1},
        "shots": {"shots": 1},
        "weights": {"weights_sha256": "0" * 64},
    }.get(damage, {})
    text = {"rate": re.sub(r"\bLR: .*\n", "LR: 0.5\n", text), "config": ""}.get(damage, text)
    with pytest.raises(UsageError, match="damaged" if damage == "config" else "holds a run with"):
        check(text, **changed)


@pytest.mark.parametrize("value", [(1, (2, None)), [date(2026, 1, 1)], [b"x"], [{1: 2, None: 3}]])
def test_settings_are_compared_in_the_form_of_yaml(value, tmp_path):
    settings = {
        "OUTPUT_DIR": str(tmp_path),
        "DATASET": {"NAME": "EuroSAT"},
        "BY_DATASET": {"KEY": value},
    }
    begin(tmp_path)
    (tmp_path / "config.yaml").write_text(CfgNode(settings).dump())
    check_same_settings(CfgNode(settings), finished=False)
    settings["BY_DATASET"]["KEY"] = [value]
    with one_line("holds a run with BY_DATASET.KEY"):
        check_same_settings(CfgNode(settings), finished=False)


def test_root_of_own_images_is_compared_as_a_path(tmp_path, monkeypatch):
    def settings(root):
        return CfgNode(
            {"OUTPUT_DIR": str(tmp_path), "DATASET": {"NAME": "ImageFolder", "ROOT": str(root)}}
        )

    monkeypatch.chdir(tmp_path)
    begin(tmp_path)
    (tmp_path / "config.yaml").write_text(settings("birds").dump())
    for same in ("birds", "./birds/", tmp_path / "birds"):
        check_same_settings(settings(same), finished=False)
    with one_line("holds a run with DATASET.ROOT birds, this one has /birds"):
        check_same_settings(settings("/birds"), finished=False)
