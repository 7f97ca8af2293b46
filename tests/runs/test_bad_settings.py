"""Settings that are invalid, or unfit for a method, give a line with the remedy, exit status 2, and
leave nothing.
"""

import shlex
from pathlib import Path

import pytest
import torch
import yaml
from drawn import arguments, results, sentences_of, write_eurosat
from learned import NAMES
from PIL import Image

from configs.recipes import recipe

REFUSED = yaml.safe_load(Path(__file__).with_name("refused_settings.yaml").read_text())


@pytest.mark.parametrize("line", REFUSED)
def test_refused_in_one_line(line, refused, eurosat, tmp_path, request):
    given = line.replace("SENTENCES SENTENCES", f"SENTENCES {sentences_of(NAMES, tmp_path)}")
    method, backbone, *words = shlex.split(given)
    how = {"trainer": method}
    if method != "MPL":
        how["config"] = recipe(method, "few_shot").cfg
    if words and words[0].startswith("--"):
        how["options"] = words
        words = []
    backbone = request.getfixturevalue(backbone)
    refused(arguments(eurosat, backbone, tmp_path / "out", *words, **how), *REFUSED[line])


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/out"])
def test_output_folder_is_not_writable(place, launch, eurosat, tiny, tmp_path):
    (tmp_path / "file").write_text("mine")
    error = launch(*arguments(eurosat, tiny, tmp_path / place)).error
    assert str(tmp_path / place) in error and "--output-dir" in error
    assert (tmp_path / "file").read_text() == "mine"


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
    launch.works(*argv("TipAdapter", *ONCE, output="run"))
    options = ["--eval-only", "--model-dir", tmp_path / "run"]
    tested = argv("TipAdapter", *ONCE, backbone=other, options=options)
    assert "prompts for other weights: SHA-256" in launch(*tested).error


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
