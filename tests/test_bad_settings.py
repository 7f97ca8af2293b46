"""Settings that are invalid, or unfit for a method, give a line with the remedy, exit status 2, and
leave nothing.
"""

import shlex

import pytest
import torch
from drawn import arguments, results, section_pairs, write_eurosat
from PIL import Image

from configs.recipes import recipe

CASES = [  # KEY VALUE pairs, and words of the error
    # Names
    ("OPTIM.LRR 0.1", "unknown config key OPTIM.LRR; did you mean OPTIM.LR?"),
    ("TRAINER.NAME MPLL", "no trainer 'MPLL': did you mean MPL?"),
    ("DATASET.NAME ''", "--dataset-config-file is missing"),
    (
        "--debug",
        "the option --debug is among the KEY VALUE pairs: put --debug before them (for scripts: "
        "MPL_DEBUG=1",
    ),
    # Types and ranges: of Dassl, of this project, of a method
    (
        "DATASET.SUBSAMPLE_CLASSES old",
        "DATASET.SUBSAMPLE_CLASSES is 'old': give one of all, base, new",
    ),
    # Values that cannot work together
    ("TRAINER.MPL.N_RM_OP 2", "layer 1", "2", "1"),
    ("TRAINER.MPL.N_ADD_OP 1 TRAINER.MPL.N_RM_OP '[0, 3]'", "layer 2", "3", "2"),
    ("TRAINER.MPL.PROMPT_DEPTH 5", "TRAINER.MPL.PROMPT_DEPTH is 5", "4 layers"),
    (
        "OPTIM.SGD_NESTEROV True OPTIM.MOMENTUM 0.0",
        "OPTIM.SGD_NESTEROV needs OPTIM.MOMENTUM above 0",
    ),
    ("DATALOADER.K_TRANSFORMS 2", "DATALOADER.K_TRANSFORMS is 2: set it to 1 for MPL"),
    ("INPUT.NO_TRANSFORM True", "INPUT.NO_TRANSFORM leaves images that cannot form a batch"),
    (
        "INPUT.GB_K 65 INPUT.TRANSFORMS \"('gaussian_blur',)\"",
        "INPUT.GB_K is 65: for INPUT.SIZE (32, 32) give at most 63",
    ),
]


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: case[0][:50].encode("ascii", "replace").decode()
)
def test_setting(case, refused, eurosat, tiny, tmp_path):
    pairs, *words = case
    refused(arguments(eurosat, tiny, tmp_path / "out", *shlex.split(pairs)), *words)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--root", ""], "--root is missing"),
        (
            ["--config-file", "configs/trainers/MPL/vit_b4_c1_add2.yaml"],
            "no config file configs/trainers/MPL/vit_b4_c1_add2.yaml: check the path; did you mean "
            "vit_b4_c1_add2_rm1",
        ),
        (["--eval-only"], "--eval-only needs --model-dir"),
        (["--resume", "docs"], "docs holds no run: give the output folder of a run by --resume"),
        (["--model-dir", "docs"], "--model-dir has no use in training: add --eval-only"),
        (
            ["--load-epoch", 3, "--eval-only"],
            "--load-epoch has no use without --model-dir: name the run",
        ),
        (
            ["--seed", -1, "--resume", "seed{seed}"],
            "a folder has {seed} in its path, and there is no --seed: give",
        ),
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
        (
            "TCP",
            "tiny",
            {},
            ["TCP adds prompts before text layer 8", "has 4 layers", "more than 8"],
        ),
        ("TCP", "deep", {"CSC": True}, ["TRAINER.TCP.CSC is True", "one context for all classes"]),
        ("UPT", "deep", {"N_CTX_TEXT": 90}, ["has 94 tokens", "77 positions"]),
        ("MMRL", "tiny", {}, ["the last of TRAINER.MMRL.REP_LAYERS is 12", "has 4 layers"]),
        (
            "MMRL",
            "deep",
            {"REP_LAYERS": [6, 8]},
            ["TRAINER.MMRL.REP_LAYERS is [6, 8]", "in order and without gaps"],
        ),
        (
            "CLIPLoRA",
            "deep",
            {"PARAMS": ["q", "z"]},
            ["PARAMS is ['q', 'z']", "some of q, k, v and o"],
        ),
        (
            "CLIPSVD",
            "deep",
            {"PARAMS": ["q", "z"]},
            ["PARAMS is ['q', 'z']", "some of q, k, v, o and mlp"],
        ),
        ("CLIPSVD", "tiny", {"RANK": 0.01}, ["TRAINER.CLIPSVD.RANK is 0.01: raise it"]),
        (
            "CLIPSVD",
            "tiny",
            {"LAYERS": "top"},
            ["CLIPSVD has nothing to train with these settings"],
        ),
        ("TwoStage", "tiny", {"TEXT_START": 9}, ["TRAINER.TWOSTAGE.TEXT_START is 9", "give 0 to"]),
        (
            "ProLIP",
            "tiny",
            {"LAMBDA": "1/N^3"},
            ["TRAINER.PROLIP.LAMBDA is '1/N^3'", "one of 1/N, 1/N^2"],
        ),
        ("RLA", "tiny", {"FEATURES_OF": "x"}, ["TRAINER.RLA.FEATURES_OF is given: leave it out"]),
        (
            "CLIPLoRA",
            "tiny",
            {"POSITION": "up"},
            ["TRAINER.CLIPLORA.POSITION is up", "do not exist: give all"],
        ),
        (
            "MMA",
            "deep",
            {"ADAPTER_START": 9, "ADAPTER_END": 8},
            ["ADAPTER_START is 9", "the last block is 8"],
        ),
        (
            "LoCoOp",
            "deep",
            {},
            ["TRAINER.LOCOOP.TOPK is 200, and there are 6 classes", "give 1, or 0.2"],
        ),
        (
            "KgCoOp",
            "deep",
            {"CTX_INIT": "true"},
            ["CTX_INIT is the word 'true': write True or False"],
        ),
        (
            "WaffleCLIP",
            "tiny",
            {"MODE": "waffle_and_gpt", "COUNT": 1},
            ["TRAINER.WAFFLECLIP.COUNT is 1: give 2 or more"],
        ),
        ("ProGrad", "deep", {"NAME": "kd"}, ["NAME is 'kd': the loss of ProGrad is prograd"]),
        (
            "IVLP",
            "deep",
            TWO | {"PROMPT_DEPTH_TEXT": 0, "PROMPT_DEPTH_VISION": 0},
            ["are 0: raise one of them"],
        ),
        (
            "IVLP",
            "deep",
            {"N_CTX_VISION": 0},
            ["N_CTX_VISION is 0, and PROMPT_DEPTH_VISION is 12: set both to 0"],
        ),
        (
            "PromptSRC",
            "tiny",
            TWO | {"GPA_MEAN": 1000, "GPA_STD": 1},
            ["GPA_MEAN 1000 is far from all 2 epochs"],
        ),
    ],
    ids=str,
)
def test_refused_in_one_line(
    method, backbone, settings, words, refused, eurosat, deep, tiny, tmp_path
):
    pairs = section_pairs(method, settings)
    how = {"trainer": method, "config": recipe(method, "few_shot").cfg}
    refused(
        arguments(eurosat, {"deep": deep, "tiny": tiny}[backbone], tmp_path / "out", *pairs, **how),
        *words,
    )


# Testing prompts that are not there, or not those of the settings


def evaluate(eurosat, backbone, tmp_path, model_dir, *options):
    return arguments(
        eurosat,
        backbone,
        tmp_path / "out",
        options=["--eval-only", "--model-dir", model_dir, *options],
    )


def test_prompts_of_another_method(refused, eurosat, tiny, tmp_path):
    folder = tmp_path / "coop/MultiModalPromptLearner"
    folder.mkdir(parents=True)
    torch.save({"state_dict": {"ctx": torch.zeros(4, 64)}, "epoch": 2}, folder / "model.pth.tar-2")
    argv = evaluate(eurosat, tiny, tmp_path, folder.parent, "--load-epoch", 2)
    refused(argv, f"{folder}/model.pth.tar-2 is a checkpoint of CoOp", "not of MPL")


# Images, folders and commands that methods on features and test-time methods cannot use end in one
# line.

ONCE = ("OPTIM.MAX_EPOCH", 1)


@pytest.fixture
def other(backbones):
    """A backbone with features of another width."""
    return backbones(32, 16, 4, 4, 64, 64, 128)


@pytest.mark.slow
def test_weights_of_another_backbone(launch, argv, other, tmp_path):
    """A head tested on its features, and a head on the features of a run there."""
    assert launch(*argv("TipAdapter", *ONCE, output="run")).status == 0
    assert launch(*argv("MPL", *ONCE, output="mpl", config="", backbone=other)).status == 0
    options = ["--eval-only", "--model-dir", tmp_path / "run"]
    tested = argv("TipAdapter", *ONCE, backbone=other, options=options)
    for line in (tested, argv("GDA", *ONCE, "TRAINER.GDA.FEATURES_OF", str(tmp_path / "mpl"))):
        assert "prompts for other weights: SHA-256" in launch(*line).error


# Bad input gives one line with the fault and the remedy, exit status 2, and leaves nothing behind.

SPLIT = "eurosat/split_zhou_EuroSAT.json"


@pytest.fixture
def root(tmp_path):
    """A dataset to be damaged: 4 classes, 3 / 1 / 2 images each."""
    write_eurosat(tmp_path / "data", ["red", "green field", "blue_lake", "grey"], train=3)
    return tmp_path / "data"


# Data


def test_no_data_folder(refused, tiny, tmp_path):
    refused(
        arguments(tmp_path / "nowhere", tiny, tmp_path / "out"),
        tmp_path / "nowhere",
        "--root (DATA for scripts)",
    )
    remedy = "python tools/prepare.py eurosat --root"
    refused(arguments(tmp_path, tiny, tmp_path / "out"), f"no folder {tmp_path}/eurosat", remedy)


ROW = '["0/train_0.png", 0, "red"]'


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: '{"train": [], "val": []}',
        lambda text: text.replace(ROW, '["0/train_0.png", "red", 0]'),
        lambda text: "[" * 100_000,
    ],
    ids=["cut off", "a part missing", "a wrong row", "deep"],
)
def test_damaged_split_file(damage, refused, root, tiny, tmp_path):
    file = root / SPLIT
    file.write_text(damage(file.read_text()))
    refused(
        arguments(root, tiny, tmp_path / "out"),
        file,
        "damaged",
        "python tools/prepare.py eurosat --root",
    )


@pytest.mark.parametrize(("part", "workers"), [("train", 2), ("test", 0)])
def test_unreadable_image_is_named(part, workers, launch, root, tiny, tmp_path):
    image = root / f"eurosat/2750/1/{part}_0.png"
    if workers:
        image.write_bytes(image.read_bytes()[:100])
        fault = f"'{image}' (image file is truncated)"
    else:
        Image.new("RGB", (8, 8)).save(image, "DDS")
        fault = f"'{image}' is damaged or not a JPEG"
    argv = arguments(
        root, tiny, tmp_path / "out", "DATASET.NUM_SHOTS", -1, "DATALOADER.NUM_WORKERS", workers
    )
    assert fault in launch(*argv).error
    assert not (tmp_path / "out/results.json").exists()


def test_thin_image_is_refused_by_a_run_and_found_by_prepare(launch, prepare, root, tiny, tmp_path):
    """Decoding it was cheap and resizing it a traceback after the last epoch; `prepare --check`
    found nothing wrong.
    """
    image = root / "eurosat/2750/1/test_0.png"
    Image.new("L", (2_000_000, 1)).save(image)
    error = launch(*arguments(root, tiny, tmp_path / "out", "DATASET.NUM_SHOTS", -1)).error
    assert str(image) in error and "has 2,000,000 x 1 pixels" in error
    assert f"images unreadable (1): {image} (" in prepare("eurosat", "--check").printed


def test_class_with_fewer_images_than_shots_is_used_and_the_folder_is_only_read(
    launch, root, tiny, tmp_path
):
    def state():
        return {
            path: (path.stat().st_mtime_ns, path.stat().st_size)
            for path in [root, *root.rglob("*")]
        }

    before = state()
    ended = launch(*arguments(root, tiny, tmp_path / "out", "DATASET.NUM_SHOTS", 4))
    assert 'Class "green field" has 3 of the 4 images asked for: all are used' in ended.printed
    assert results(tmp_path / "out")["shots"] == 4 and state() == before


# Backbones


def test_images_of_another_size_than_the_backbone_reads(refused, eurosat, tiny, tmp_path):
    argv = arguments(eurosat, tiny, tmp_path / "out", "INPUT.SIZE", "(224, 224)")
    refused(argv, "INPUT.SIZE is (224, 224)", f"{tiny} reads (32, 32)")
