"""Whether a folder holds the run that somebody asks for."""

import json
from datetime import date

import pytest
import yaml
from drawn import arguments
from yacs.config import CfgNode

from common.errors import UsageError
from common.files import checksum
from experiments.arguments import parse_arguments
from experiments.configuration import default_settings, flatten, setup_cfg
from experiments.results import RECORDED
from experiments.same_run import arguments_digest, check_finished, check_same_settings

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
    """`folder(left_out)` -> the folder of a run whose version lacks this setting, and its arguments."""
    argv = arguments(eurosat, tiny, tmp_path / "run")
    cfg = setup_cfg(parse_arguments(argv))
    begin(tmp_path / "run")

    def folder(left_out=""):
        settings = flatten(cfg)
        results = {key: settings[name] for key, name in RECORDED.items() if name != left_out}
        (tmp_path / "run/results.json").write_text(json.dumps(results | {"weights_sha256": ""}))
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
def test_setting_that_a_run_lacks_counts_as_its_default(key, finished, folder):
    _, argv = folder(key)
    default = default_settings("MPL")[key]
    check_same_settings(setup_cfg(parse_arguments([*argv, key, str(default)])), finished)
    with pytest.raises(UsageError, match=f"holds a run with {key} "):
        check_same_settings(setup_cfg(parse_arguments([*argv, key, str(LATER[key])])), finished)


def test_finished_run_without_its_settings_is_refused(folder):
    path, argv = folder()
    (path / "config.yaml").unlink()
    with pytest.raises(UsageError, match="config.yaml"):
        check_same_settings(setup_cfg(parse_arguments(argv)), finished=True)


def test_digest_of_arguments_changes_with_what_decides_the_settings(eurosat, tiny, tmp_path, monkeypatch):
    base, method = tmp_path / "base.yaml", tmp_path / "method.yaml"
    base.write_text("OPTIM: {LR: 0.1}")
    method.write_text("_BASE_: base.yaml")

    def digest(*more, output="run"):
        return arguments_digest([*arguments(eurosat, tiny, tmp_path / output), "--config-file", str(method), *more])

    first = digest()
    assert first == digest(output="other") == digest("--quiet", "--skip-finished")
    digests = [first, digest("--seed", "2"), digest("OPTIM.LR", "0.2"), digest("--trainer", "CoOp")]
    method.write_text("_BASE_: base.yaml\nSEED: 3")
    digests.append(digest())
    assert None not in digests and len(set(digests)) == 5
    assert arguments_digest(["--config-file", str(method)]) is None  # its method is not known
    assert digest("--config-file", str(tmp_path / "missing.yaml")) is None


def test_finished_run_with_the_digest_is_not_set_up_again(folder, monkeypatch):
    path, argv = folder()
    results = json.loads((path / "results.json").read_text())
    monkeypatch.setattr("experiments.same_run.setup_cfg", lambda args: pytest.fail("set up"))
    results |= {"arguments_sha256": arguments_digest(argv), "config_sha256": checksum(path / "config.yaml")}
    check_finished(path, results, argv)
    monkeypatch.undo()
    with pytest.raises(UsageError, match="SEED"):
        check_finished(path, results, [*argv, "SEED", "2"])
    results["weights_sha256"] = "0" * 64
    (path / "results.json").write_text(json.dumps(results))
    with pytest.raises(UsageError, match="weights"):
        check_finished(path, results, argv)


@pytest.mark.parametrize("value", [(1, (2, None)), [date(2026, 1, 1)], [b"x"], [{1: 2, None: 3}]])
def test_settings_that_yaml_can_write_are_compared(value, tmp_path):
    settings = {"OUTPUT_DIR": str(tmp_path), "DATASET": {"NAME": "EuroSAT"}, "BY_DATASET": {"KEY": value}}
    begin(tmp_path)
    (tmp_path / "config.yaml").write_text(CfgNode(settings).dump())
    check_same_settings(CfgNode(settings), finished=False)
    settings["BY_DATASET"]["KEY"] = [value]
    with pytest.raises(UsageError, match="holds a run with BY_DATASET.KEY"):
        check_same_settings(CfgNode(settings), finished=False)


def test_root_of_own_images_is_compared_as_a_path(tmp_path, monkeypatch):
    def settings(root):
        return CfgNode({"OUTPUT_DIR": str(tmp_path), "DATASET": {"NAME": "ImageFolder", "ROOT": str(root)}})

    monkeypatch.chdir(tmp_path)
    begin(tmp_path)
    (tmp_path / "config.yaml").write_text(settings("birds").dump())
    for same in ("birds", "./birds/", tmp_path / "birds"):
        check_same_settings(settings(same), finished=False)
    with pytest.raises(UsageError, match="holds a run with DATASET.ROOT birds, this one has /birds"):
        check_same_settings(settings("/birds"), finished=False)
