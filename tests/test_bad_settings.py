"""Invalid settings give one line with the fault and the remedy, exit status 2, and leave nothing behind."""

import pytest
import torch
from drawn import arguments

from clip import load_backbone

CASES = {
    "unknown key": (["OPTIM.LRR", 0.1], ["unknown config key OPTIM.LRR", "did you mean OPTIM.LR?"]),
    "unknown key of the method": (
        ["TRAINER.MPL.N_ADD", 2],
        ["TRAINER.MPL.N_ADD ", "did you mean TRAINER.MPL.N_ADD_OP?"],
    ),
    "unknown dataset": (["DATASET.NAME", "EuroSta"], ['"EuroSta"', "EuroSAT", "did you mean EuroSAT?"]),
    "unknown trainer": (["TRAINER.NAME", "MLP"], ['"MLP"', "ZeroshotCLIP", "did you mean MPL?"]),
    "no dataset": (["DATASET.NAME", "''"], ["--dataset-config-file is missing"]),
    "no trainer": (["TRAINER.NAME", "''"], ["--trainer is missing"]),
    "no value": (["OPTIM.LR"], ["'OPTIM.LR' has no value", "KEY VALUE"]),
    "wrong type": (["OPTIM.LR", "fast"], ["OPTIM.LR", "takes a float, not a str"]),
    "a list for a number": (["OPTIM.MAX_EPOCH", "[1, 2]"], ["OPTIM.MAX_EPOCH", "takes an int, not a"]),
    "a key for a group": (["OPTIM", 1], ["OPTIM", "a group of keys"]),
    "unknown half": (["DATASET.SUBSAMPLE_CLASSES", "old"], ["DATASET.SUBSAMPLE_CLASSES is 'old'", "base"]),
    "unknown transform": (["INPUT.TRANSFORMS", "['random_flop']"], ["random_flop", "did you mean random_flip?"]),
    "unknown optimiser": (["OPTIM.NAME", "sdg"], ["sdg", "sgd"]),
    "unknown schedule": (["OPTIM.LR_SCHEDULER", "cosin"], ["cosin", "cosine"]),
    "unknown precision": (["TRAINER.MPL.PREC", "fp8"], ["TRAINER.MPL.PREC is 'fp8'", "fp16", "fp32", "amp"]),
    "more removed than there are": (["TRAINER.MPL.N_RM_OP", 2], ["layer 1", "2", "1"]),
    "more removed later": (["TRAINER.MPL.N_ADD_OP", 1, "TRAINER.MPL.N_RM_OP", "[0, 3]"], ["layer 2", "3", "2"]),
    "negative": (["TRAINER.MPL.N_RM_OP", -1], ["TRAINER.MPL.N_RM_OP is -1", "number >= 0"]),
    "negative in a list": (["TRAINER.MPL.N_ADD_OP", "[1, -1]"], ["TRAINER.MPL.N_ADD_OP is [1, -1]", "number >= 0"]),
    "too short a list": (["TRAINER.MPL.N_ADD_OP", "[1]"], ["TRAINER.MPL.N_ADD_OP is [1]", "PROMPT_DEPTH - 1 = 2"]),
    "too long a list": (["TRAINER.MPL.N_RM_OP", "[1, 1, 1]"], ["TRAINER.MPL.N_RM_OP is [1, 1, 1]", "PROMPT_DEPTH - 1"]),
    "no list of numbers": (["TRAINER.MPL.N_ADD_OP", "two"], ["TRAINER.MPL.N_ADD_OP is 'two'", "list"]),
    "half a prompt": (["TRAINER.MPL.N_ADD_OP", 1.5], ["TRAINER.MPL.N_ADD_OP is 1.5", "list"]),
    "too deep": (["TRAINER.MPL.PROMPT_DEPTH", 5], ["TRAINER.MPL.PROMPT_DEPTH is 5", "4 layers"]),
    "depth 0": (["TRAINER.MPL.PROMPT_DEPTH", 0], ["PROMPT_DEPTH 0", "start at 1"]),
    "no context": (["TRAINER.MPL.N_CTX", 0], ["TRAINER.MPL.N_CTX is 0", "start at 1"]),
    "a prompt too long to read": (["TRAINER.MPL.N_CTX", 80], ["77"]),
}


@pytest.mark.parametrize(("overrides", "words"), CASES.values(), ids=CASES)
def test_setting(overrides, words, refused, eurosat, tiny, tmp_path):
    refused(arguments(eurosat, tiny, tmp_path / "out", *overrides), *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("OPTIM:\n  LRR: 0.1\n", ["unknown config key OPTIM.LRR in", "did you mean OPTIM.LR?"]),
        ("OPTIMIZER:\n  LR: 0.1\n", ["unknown config key OPTIMIZER", "did you mean OPTIM"]),
        ("OPTIM:\n  LR: fast\n", ["OPTIM.LR in", "takes a float, not a str"]),
        ("OPTIM: [\n", ["line", "is not YAML"]),
        ("fast\n", ["is not a config"]),
        ("_BASE_: other.yaml\n", ["no config file", "other.yaml"]),
    ],
)
def test_yaml(text, words, refused, eurosat, tiny, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    for option in ("--config-file", "--dataset-config-file"):
        argv = arguments(eurosat, tiny, tmp_path / "out", options=[option, file])
        refused(argv, tmp_path if "_BASE_" in text else file, *words)


def test_missing_yaml(refused, eurosat, tiny, tmp_path):
    argv = arguments(eurosat, tiny, tmp_path / "out", options=["--config-file", tmp_path / "mine.yaml"])
    refused(argv, f"no config file {tmp_path}/mine.yaml")


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/out"])
def test_output_folder_is_not_writable(place, launch, eurosat, tiny, tmp_path):
    (tmp_path / "file").write_text("mine")
    ended = launch(*arguments(eurosat, tiny, tmp_path / place))
    assert (ended.status, len(ended.errors)) == (2, 1), ended.errors
    assert ended.errors[0].startswith("error: ") and str(tmp_path / place) in ended.errors[0]
    assert "--output-dir" in ended.errors[0]
    assert (tmp_path / "file").read_text() == "mine"


# Testing prompts that are not there, or not those of the settings


@pytest.fixture
def trained(launch, eurosat, tiny, tmp_path):
    folder = tmp_path / "trained"
    assert launch(*arguments(eurosat, tiny, folder, "OPTIM.MAX_EPOCH", 1)).status == 0
    return folder


def evaluate(eurosat, backbone, tmp_path, model_dir, *overrides, options=()):
    options = ["--eval-only", "--model-dir", model_dir, *options]
    return arguments(eurosat, backbone, tmp_path / "out", *overrides, options=options)


def test_missing_model_dir(refused, eurosat, tiny, tmp_path):
    refused(
        evaluate(eurosat, tiny, tmp_path, tmp_path / "nowhere"),
        f"there is no folder {tmp_path}/nowhere: check --model-dir",
    )


def test_nothing_to_evaluate(refused, eurosat, tiny, tmp_path):
    refused(arguments(eurosat, tiny, tmp_path / "out", options=["--eval-only"]), "--eval-only needs --model-dir")


def test_epoch_without_checkpoint(refused, trained, eurosat, tiny, tmp_path):
    argv = evaluate(eurosat, tiny, tmp_path, trained, options=["--load-epoch", 3])
    refused(argv, f"no MPL checkpoint {trained}/MultiModalPromptLearner/model.pth.tar-3", "--load-epoch")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["TRAINER.MPL.PROMPT_DEPTH", 4], "has no prompt_learner.compound_prompts_text.2"),
        (["TRAINER.MPL.PROMPT_DEPTH", 2], "has prompts beyond these settings"),
        (["TRAINER.MPL.N_CTX", 2], "has shape (1, 64), expected is (2, 64)"),
        (["TRAINER.MPL.N_ADD_OP", 3], "has no prompt_learner.txt2img_proj.2.0"),
    ],
)
def test_prompts_of_other_settings(overrides, words, refused, trained, eurosat, tiny, tmp_path):
    argv = evaluate(eurosat, tiny, tmp_path, trained, *overrides)
    refused(argv, f"{trained}/MultiModalPromptLearner/model.pth.tar-1", words, "use the settings")


def test_prompts_of_another_method(refused, eurosat, tiny, tmp_path):
    folder = tmp_path / "coop/MultiModalPromptLearner"
    folder.mkdir(parents=True)
    torch.save({"state_dict": {"ctx": torch.zeros(4, 64)}, "epoch": 2}, folder / "model.pth.tar-2")
    argv = evaluate(eurosat, tiny, tmp_path, folder.parent, options=["--load-epoch", 2])
    refused(argv, f"{folder}/model.pth.tar-2 is a checkpoint of CoOp, not of MPL")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", 0.5], ids=["empty", "text", "cut off"])
def test_damaged_checkpoint(content, refused, trained, eurosat, tiny, tmp_path):
    file = trained / "MultiModalPromptLearner/model.pth.tar-1"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if content == 0.5 else content)
    refused(evaluate(eurosat, tiny, tmp_path, trained), file, "is not a whole checkpoint")


def test_weight_file_is_not_a_checkpoint(refused, trained, eurosat, tiny, tmp_path):
    torch.save(load_backbone(str(tiny)).state_dict(), trained / "MultiModalPromptLearner/model.pth.tar-1")
    refused(evaluate(eurosat, tiny, tmp_path, trained), "model.pth.tar-1 is not a checkpoint of a training run")
