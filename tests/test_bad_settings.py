"""Settings that are invalid, or unfit for a method, give a line with the remedy, exit status 2, and leave nothing."""

import shlex

import pytest
import torch
from drawn import arguments, section_pairs

from experiments.protocols import recipe

CASES = [  # KEY VALUE pairs, and words of the error
    # Names
    ("OPTIM.LRR 0.1", "unknown config key OPTIM.LRR; did you mean OPTIM.LR?"),
    ("TRAINER.NAME MPLL", "no trainer 'MPLL': did you mean MPL?"),
    ("DATASET.NAME ''", "--dataset-config-file is missing"),
    ("--debug", "the option --debug is among the KEY VALUE pairs: put --debug before them (for scripts: MPL_DEBUG=1"),
    # Types and ranges: of Dassl, of this project, of a method
    ("DATASET.SUBSAMPLE_CLASSES old", "DATASET.SUBSAMPLE_CLASSES is 'old': give one of all, base, new"),
    # Values that cannot work together
    ("TRAINER.MPL.N_RM_OP 2", "layer 1", "2", "1"),
    ("TRAINER.MPL.N_ADD_OP 1 TRAINER.MPL.N_RM_OP '[0, 3]'", "layer 2", "3", "2"),
    ("TRAINER.MPL.PROMPT_DEPTH 5", "TRAINER.MPL.PROMPT_DEPTH is 5", "4 layers"),
    ("OPTIM.SGD_NESTEROV True OPTIM.MOMENTUM 0.0", "OPTIM.SGD_NESTEROV needs OPTIM.MOMENTUM above 0"),
    ("DATALOADER.K_TRANSFORMS 2", "DATALOADER.K_TRANSFORMS is 2: set it to 1 for MPL"),
    ("INPUT.NO_TRANSFORM True", "INPUT.NO_TRANSFORM leaves images that cannot form a batch"),
    (
        "INPUT.GB_K 65 INPUT.TRANSFORMS \"('gaussian_blur',)\"",
        "INPUT.GB_K is 65: for INPUT.SIZE (32, 32) give at most 63",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0][:50].encode("ascii", "replace").decode())
def test_setting(case, refused, eurosat, tiny, tmp_path):
    pairs, *words = case
    refused(arguments(eurosat, tiny, tmp_path / "out", *shlex.split(pairs)), *words)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--root", ""], "--root is missing"),
        (
            ["--config-file", "configs/trainers/MPL/vit_b4_c1_add2.yaml"],
            "no config file configs/trainers/MPL/vit_b4_c1_add2.yaml: check the path; did you mean vit_b4_c1_add2_rm1",
        ),
        (["--eval-only"], "--eval-only needs --model-dir"),
        (["--resume", "docs"], "docs holds no run: give the output folder of a run by --resume"),
        (["--model-dir", "docs"], "--model-dir has no use in training: add --eval-only"),
        (["--load-epoch", 3, "--eval-only"], "--load-epoch has no use without --model-dir: name the run"),
        (["--seed", -1, "--resume", "seed{seed}"], "a folder has {seed} in its path, and there is no --seed: give"),
    ],
)
def test_option(option, words, refused, eurosat, tiny, tmp_path):
    refused(arguments(eurosat, tiny, tmp_path / "out", options=option), words)


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/out"])
def test_output_folder_is_not_writable(place, launch, eurosat, tiny, tmp_path):
    (tmp_path / "file").write_text("mine")
    error = launch(*arguments(eurosat, tiny, tmp_path / place)).error
    assert str(tmp_path / place) in error and "--output-dir" in error
    assert (tmp_path / "file").read_text() == "mine"


# Settings that a method refuses


TWO = {"PROMPT_DEPTH_TEXT": 2, "PROMPT_DEPTH_VISION": 2}


@pytest.mark.parametrize(
    ("method", "backbone", "settings", "words"),
    [
        ("TCP", "tiny", {}, ["TCP adds prompts before text layer 8", "has 4 layers", "more than 8"]),
        ("TCP", "deep", {"CSC": True}, ["TRAINER.TCP.CSC is True", "one context for all classes"]),
        ("UPT", "deep", {"N_CTX_TEXT": 90}, ["has 94 tokens", "77 positions"]),
        ("MMRL", "tiny", {}, ["the last of TRAINER.MMRL.REP_LAYERS is 12", "has 4 layers"]),
        ("MMRL", "deep", {"REP_LAYERS": [6, 8]}, ["TRAINER.MMRL.REP_LAYERS is [6, 8]", "in order and without gaps"]),
        ("CLIPLoRA", "deep", {"PARAMS": ["q", "z"]}, ["PARAMS is ['q', 'z']", "some of q, k, v and o"]),
        ("CLIPSVD", "deep", {"PARAMS": ["q", "z"]}, ["PARAMS is ['q', 'z']", "some of q, k, v, o and mlp"]),
        ("CLIPSVD", "tiny", {"RANK": 0.01}, ["TRAINER.CLIPSVD.RANK is 0.01: raise it"]),
        ("CLIPSVD", "tiny", {"LAYERS": "top"}, ["CLIPSVD has nothing to train with these settings"]),
        ("TwoStage", "tiny", {"TEXT_START": 9}, ["TRAINER.TWOSTAGE.TEXT_START is 9", "give 0 to"]),
        ("ProLIP", "tiny", {"LAMBDA": "1/N^3"}, ["TRAINER.PROLIP.LAMBDA is '1/N^3'", "one of 1/N, 1/N^2"]),
        ("RLA", "tiny", {"FEATURES_OF": "x"}, ["TRAINER.RLA.FEATURES_OF is given: leave it out"]),
        ("CLIPLoRA", "tiny", {"POSITION": "up"}, ["TRAINER.CLIPLORA.POSITION is up", "do not exist: give all"]),
        ("MMA", "deep", {"ADAPTER_START": 9, "ADAPTER_END": 8}, ["ADAPTER_START is 9", "the last block is 8"]),
        ("LoCoOp", "deep", {}, ["TRAINER.LOCOOP.TOPK is 200, and there are 6 classes", "give 1, or 0.2"]),
        ("KgCoOp", "deep", {"CTX_INIT": "true"}, ["CTX_INIT is the word 'true': write True or False"]),
        (
            "WaffleCLIP",
            "tiny",
            {"MODE": "waffle_and_gpt", "COUNT": 1},
            ["TRAINER.WAFFLECLIP.COUNT is 1: give 2 or more"],
        ),
        ("ProGrad", "deep", {"NAME": "kd"}, ["NAME is 'kd': the loss of ProGrad is prograd"]),
        ("IVLP", "deep", TWO | {"PROMPT_DEPTH_TEXT": 0, "PROMPT_DEPTH_VISION": 0}, ["are 0: raise one of them"]),
        ("IVLP", "deep", {"N_CTX_VISION": 0}, ["N_CTX_VISION is 0, and PROMPT_DEPTH_VISION is 12: set both to 0"]),
        ("PromptSRC", "tiny", TWO | {"GPA_MEAN": 1000, "GPA_STD": 1}, ["GPA_MEAN 1000 is far from all 2 epochs"]),
    ],
    ids=str,
)
def test_refused_in_one_line(method, backbone, settings, words, refused, eurosat, deep, tiny, tmp_path):
    pairs = section_pairs(method, settings)
    how = {"trainer": method, "config": recipe(method, "few_shot").cfg}
    refused(arguments(eurosat, {"deep": deep, "tiny": tiny}[backbone], tmp_path / "out", *pairs, **how), *words)


# Testing prompts that are not there, or not those of the settings


def evaluate(eurosat, backbone, tmp_path, model_dir, *options):
    return arguments(eurosat, backbone, tmp_path / "out", options=["--eval-only", "--model-dir", model_dir, *options])


def test_prompts_of_another_method(refused, eurosat, tiny, tmp_path):
    folder = tmp_path / "coop/MultiModalPromptLearner"
    folder.mkdir(parents=True)
    torch.save({"state_dict": {"ctx": torch.zeros(4, 64)}, "epoch": 2}, folder / "model.pth.tar-2")
    argv = evaluate(eurosat, tiny, tmp_path, folder.parent, "--load-epoch", 2)
    refused(argv, f"{folder}/model.pth.tar-2 is a checkpoint of CoOp", "not of MPL")
