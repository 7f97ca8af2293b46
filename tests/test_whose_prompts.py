"""Learned prompts are used with the weights and the classes that they were learned on, or refused in one line."""

import json
from argparse import Namespace

import pytest
import torch
import yaml
from dassl.utils import load_checkpoint, save_checkpoint
from finished import finish
from learned import OPTIONS
from marks import thorough_but

from clip.random_weights import random_tensor
from common.errors import UsageError
from common.files import checksum
from common.start import ROOT
from experiments.studies.progress import collect_results
from experiments.studies.study_file import load
from inference import export, predict
from inference.inspection import command as inspect_command
from inference.models import open_models

EUROSAT = ["--dataset-config-file", ROOT / "configs/datasets/eurosat.yaml"]
FEW = ["INPUT.SIZE", "(32, 32)", "DATALOADER.NUM_WORKERS", 0, "DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 2]


@pytest.fixture
def backbone(tiny, tmp_path):
    """A file that a test may replace by one with other weights."""
    (tmp_path / "clip.pt").write_bytes(tiny.read_bytes())
    return tmp_path / "clip.pt"


def other_weights(file):
    state = torch.load(file, weights_only=True)
    state = {key: value + 0.01 * random_tensor(f"other {key}", value.shape) for key, value in state.items()}
    torch.save(state, file)


@pytest.fixture
def train(launch, eurosat, backbone, tmp_path):
    """`train(folder, classes, *options)` runs train.py with CoOp."""

    def train(folder, classes="base", *options, overrides=()):
        argv = ["--root", eurosat, "--backbone", backbone, "--output-dir", tmp_path / folder, "--seed", 1, *EUROSAT]
        argv += ["--trainer", "CoOp", "--config-file", ROOT / "configs/trainers/CoOp/small.yaml", *options]
        return launch(*argv, "DATASET.SUBSAMPLE_CLASSES", classes, *FEW, *overrides)

    return train


@pytest.mark.slow
def test_an_evaluation_refuses_other_weights_under_the_same_name(train, backbone, tmp_path):
    assert train("a").status == 0
    same = train("again", "base", "--eval-only", "--model-dir", tmp_path / "a")
    assert same.status == 0 and "on which weights" not in same.printed
    other_weights(backbone)
    ended = train("b", "base", "--eval-only", "--model-dir", tmp_path / "a")
    (line,) = ended.errors
    assert ended.status == 2 and "has prompts for other weights: SHA-256" in line and "--backbone" in line


@pytest.mark.slow
def test_a_resumed_run_refuses_other_weights(train, backbone, tmp_path):
    assert train("a").status == 0
    other_weights(backbone)
    ended = train("b", "base", "--resume", tmp_path / "a")
    assert ended.status == 2 and "the run to resume has prompts for other weights" in ended.errors[0]


def test_damaged_metadata_is_refused_before_a_resume(train, tmp_path):
    """Its SHA-256 was a list, and the message about it a traceback."""
    assert train("a").status == 0
    (file,) = (tmp_path / "a").glob("*/model.pth.tar-2")
    checkpoint = load_checkpoint(str(file))
    checkpoint["metadata"]["weights_sha256"] = [1]
    save_checkpoint(checkpoint, str(file.parent))
    ended = train("b", "base", "--resume", tmp_path / "a")
    assert (ended.status, len(ended.errors)) == (
        2,
        1,
    ) and "metadata of the run's checkpoints is damaged" in ended.errors[0]


@pytest.fixture
def run(train, backbone, tmp_path):
    """The folder of a finished run."""
    assert train("a").status == 0
    return tmp_path / "a"


def recorded(run):
    """The SHA-256 in the files of a run."""
    (checkpoint,) = run.glob("*/model.pth.tar-2")
    config, results = (yaml.safe_load((run / name).read_text()) for name in ("config.yaml", "results.json"))
    metadata = load_checkpoint(str(checkpoint))["metadata"]
    return config["MODEL"]["BACKBONE"]["SHA256"], results["weights_sha256"], metadata["weights_sha256"]


def forget(run):
    """Make it the run of a version that did not record the weights."""
    (file,) = run.glob("*/model.pth.tar-2")
    checkpoint = load_checkpoint(str(file))
    del checkpoint["metadata"]["weights_sha256"]
    save_checkpoint(checkpoint, str(file.parent))
    config, results = (yaml.safe_load((run / name).read_text()) for name in ("config.yaml", "results.json"))
    del config["MODEL"]["BACKBONE"]["SHA256"], results["weights_sha256"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "results.json").write_text(json.dumps(results))


@pytest.mark.slow
def test_all_files_of_a_run_have_the_sha256_of_its_weights(run, backbone):
    assert recorded(run) == (checksum(backbone),) * 3


@pytest.mark.slow
@pytest.mark.parametrize("options", thorough_but(([],), ([], ["--skip-finished"])))
def test_a_run_in_the_same_folder_refuses_other_weights(options, run, train, backbone):
    assert train("a", "base", *options).status == 0
    before, changed = checksum(backbone), {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    other_weights(backbone)
    ended = train("a", "base", *options)
    assert ended.status == 2 and len(ended.errors) == 1
    what = f"{run} holds a run with other weights: {backbone} had SHA-256 {before:.12}..., now it has "
    assert f"{what}{checksum(backbone):.12}...: restore {backbone}, or choose another" in ended.errors[0]
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == changed


@pytest.mark.thorough
def test_a_run_of_an_earlier_version_is_used_with_one_warning_about_its_weights(run, train, backbone, capsys):
    forget(run)
    other_weights(backbone)
    done = train("a", "base", "--skip-finished")
    assert done.status == 0 and done.printed.count(f"does not say which weights {backbone} had") == 1
    open_models([run], OPTIONS)
    assert capsys.readouterr().out.count("does not say on which weights") == 1
    assert train("b", "base", "--eval-only", "--model-dir", run).printed.count("does not say on which weights") == 1
    assert train("a").printed.count("does not say on which weights the run began") == 1
    assert "does not say" not in train("a", "base", "--skip-finished").printed


@pytest.mark.slow
def test_a_finished_run_with_deleted_weights_is_skipped(run, train, backbone):
    backbone.unlink()
    assert train("a", "base", "--skip-finished").status == 0


def test_stated_weights_are_the_only_ones_accepted(train, backbone, tmp_path):
    stated = "MODEL.BACKBONE.SHA256", checksum(backbone).upper()
    assert train("a", "base", "--no-train", overrides=stated).status == 0
    other_weights(backbone)
    ended = train("b", "base", "--no-train", overrides=stated)
    assert ended.status == 2 and len(ended.errors) == 1
    assert f"{backbone} has {checksum(backbone)}: give the file with that checksum by --backbone" in ended.errors[0]
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["CoOp", "ZeroshotCLIP"])
def test_predict_inspect_and_export_refuse_other_weights(method, train, command, photos, backbone, tmp_path):
    argv = () if method == "CoOp" else ("--trainer", method)
    assert train("a", "base", *argv).status == 0
    other_weights(backbone)
    for tool, *arguments in (
        (predict, tmp_path / "a", photos / "a.jpg"),
        (export, tmp_path / "a", "--to", tmp_path / "exported"),
        (inspect_command, tmp_path / "a", "--output", tmp_path / "inspected"),
    ):
        ended = command(tool, *arguments, "--classes", "red", "blue")
        assert (ended.status, ended.printed) == (2, "") and len(ended.errors) == 1
        assert f"{backbone} has {checksum(backbone):.16}...: give the same weights by --backbone" in ended.errors[0]
    assert not (tmp_path / "exported").exists() and not (tmp_path / "inspected").exists()
    with pytest.raises(UsageError, match="restore that file"):  # as tools/serve.py opens it
        open_models([tmp_path / "a"], Namespace(**vars(OPTIONS) | {"backbone": str(backbone)}), ["red", "blue"])


@pytest.mark.slow
def test_a_study_refuses_results_of_other_weights(study_file, backbone):
    study = load(study_file("out", backbone=str(backbone), protocols=["few_shot"], trainers={"CoOp": "small"}))
    (run,) = study.runs()
    finish(run, 50.0, weights_sha256=checksum(backbone))
    assert collect_results(study)
    other_weights(backbone)
    with pytest.raises(UsageError, match=f"other weights: {backbone} had SHA-256"):
        collect_results(study)


@pytest.mark.slow
def test_an_evaluation_with_non_finite_logits_records_nothing(train, backbone, tmp_path):
    state = torch.load(backbone, weights_only=True)
    state["visual.proj"] = torch.full_like(state["visual.proj"], 1e38)  # finite weights, infinite features
    torch.save(state, backbone)
    for method in ("CoOp", "ZeroshotCLIP"):
        precision = [f"TRAINER.{method.upper()}.PREC", "fp32"]  # in which 1e38 is finite
        ended = train(method, "base", "--trainer", method, overrides=precision)
        assert ended.status == 2 and len(ended.errors) == 1
        assert "logits that are not finite" in ended.errors[0] or "the loss is NaN" in ended.errors[0]
        assert not (tmp_path / method / "results.json").exists()


@pytest.mark.slow
def test_class_specific_contexts_never_meet_other_classes(train, tmp_path):
    csc = ("TRAINER.COOP.CSC", True, "TRAINER.COOP.CTX_INIT", "")
    assert train("a", "base", overrides=csc).status == 0
    assert train("same", "base", "--eval-only", "--model-dir", tmp_path / "a", overrides=csc).status == 0
    ended = train("new", "new", "--eval-only", "--model-dir", tmp_path / "a", overrides=csc)
    assert ended.status == 2 and "ctx with values for each class that it was learned on" in ended.errors[0]
    assert not (tmp_path / "new/results.json").exists()


@pytest.mark.parametrize("names", [["a", "b", "c", "d", "e", "f"], ["a", "b"]], ids=["as many", "fewer"])
def test_a_tensor_of_the_classes_is_known_by_its_shape(names, build):
    trainer = build("CoOp", "all", "CSC", True)
    assert trainer.tensors_of_classes() == {"ctx": 0} and build("CoOp").tensors_of_classes() == {}
    checkpoint = {"state_dict": trainer.saved_module().state_dict(), "epoch": 1}
    trainer.load_prompts(checkpoint | {"metadata": {"class_names": trainer.class_names}}, "a file")
    with pytest.raises(UsageError, match="ctx with values for each class that it was learned on: test it on these"):
        trainer.load_prompts(checkpoint | {"metadata": {"class_names": names}}, "a file")


def test_a_published_checkpoint_of_class_specific_contexts_is_refused_on_new_classes(build):
    trainer = build("CoOp", "new", "CSC", True)
    checkpoint = {"state_dict": trainer.saved_module().state_dict(), "epoch": 1}
    with pytest.raises(UsageError, match="ctx with values for each class"):
        trainer.load_prompts(checkpoint, "a file")


def test_finding_such_tensors_draws_no_random_numbers_of_the_run(build):
    trainer = build("CoOp", "all", "CSC", True)
    before = torch.get_rng_state()
    trainer.tensors_of_classes()
    assert torch.equal(before, torch.get_rng_state())


def test_metadata_has_the_sha256_of_the_backbone(build):
    assert len(build("CoOp").checkpoint_metadata()["weights_sha256"]) == 64
