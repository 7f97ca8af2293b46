"""Bad input gives one line with the fault and the remedy, exit status 2, and leaves nothing behind.

Data and backbones here; settings are in test_bad_settings.py, runs that go wrong on their way in test_runs.py.
"""

import json
import os

import pytest
import torch
from drawn import arguments, write_eurosat
from PIL import Image

from clip.random_weights import random_clip

CLASSES = ["red", "green field", "blue_lake", "grey"]


@pytest.fixture
def root(tmp_path):
    """A dataset to be damaged: 4 classes, 3 / 1 / 2 images each."""
    write_eurosat(tmp_path / "data", CLASSES, train=3)
    return tmp_path / "data"


def split_file(root):
    return root / "eurosat/split_zhou_EuroSAT.json"


# Data


def test_no_data_folder(refused, tiny, tmp_path):
    refused(arguments(tmp_path / "nowhere", tiny, tmp_path / "out"), tmp_path / "nowhere", "--root (DATA for scripts)")


def test_no_dataset_in_the_data_folder(refused, tiny, tmp_path):
    refused(
        arguments(tmp_path, tiny, tmp_path / "out"),
        f"no folder {tmp_path}/eurosat",
        "python tools/prepare.py eurosat --root",
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: '{"train": [], "val": []}',
        lambda text: text.replace('["0/train_0.png", 0, "red"]', '["0/train_0.png", 0]'),
        lambda text: text.replace('["0/train_0.png", 0, "red"]', '["0/train_0.png", "red", 0]'),
        lambda text: "\udcff",
    ],
    ids=["cut off", "empty", "a list", "a part missing", "a short row", "a wrong row", "not text"],
)
def test_damaged_split_file(damage, refused, root, tiny, tmp_path):
    file = split_file(root)
    file.write_text(damage(file.read_text()), errors="surrogateescape")
    refused(arguments(root, tiny, tmp_path / "out"), file, "damaged", "python tools/prepare.py eurosat --root")


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_missing_image(part, refused, root, tiny, tmp_path):
    image = root / f"eurosat/2750/1/{part}_0.png"
    image.unlink()
    every = ["DATASET.NUM_SHOTS", -1]
    refused(
        arguments(root, tiny, tmp_path / "out", *every), f"1 of 24 images of EuroSAT are missing, the first {image}"
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize(
    "damage", [lambda content: b"GIF, so to speak", lambda content: content[: len(content) // 2]], ids=["text", "cut"]
)
def test_unreadable_image_is_named(damage, part, workers, launch, root, tiny, tmp_path):
    image = root / f"eurosat/2750/1/{part}_0.png"
    image.write_bytes(damage(image.read_bytes()))
    argv = arguments(root, tiny, tmp_path / "out", "DATASET.NUM_SHOTS", -1, "DATALOADER.NUM_WORKERS", workers)
    status, _, errors = launch(*argv)
    assert (status, len(errors)) == (2, 1), errors
    assert errors[0].startswith("error: ") and str(image) in errors[0]
    assert not (tmp_path / "out/results.json").exists()


@pytest.mark.parametrize("part", ["train", "test"])
def test_thin_image_is_refused_by_a_run_and_found_by_prepare(part, launch, prepare, root, tiny, tmp_path):
    """Decoding it was cheap and resizing it a traceback after the last epoch; `prepare --check` found nothing wrong."""
    image = root / f"eurosat/2750/1/{part}_0.png"
    Image.new("L", (2_000_000, 1)).save(image)
    status, _, errors = launch(*arguments(root, tiny, tmp_path / "out", "DATASET.NUM_SHOTS", -1))
    assert (status, len(errors)) == (2, 1), errors
    assert str(image) in errors[0] and "has 2,000,000 x 1 pixels" in errors[0]
    assert f"1 images are unreadable, the first {image}" in prepare("eurosat", "--check").printed


def test_class_with_fewer_images_than_shots_is_reported_and_used(launch, root, tiny, tmp_path):
    status, printed, errors = launch(*arguments(root, tiny, tmp_path / "out", "DATASET.NUM_SHOTS", 4))
    assert (status, errors) == (0, [])
    assert 'Class "green field" has 3 of the 4 images asked for: all are used' in printed
    assert (tmp_path / "out/results.json").is_file()


def test_a_dataset_folder_is_only_read(launch, eurosat, tiny, tmp_path):
    def state():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in [eurosat, *eurosat.rglob("*")]}

    before = state()
    assert launch(*arguments(eurosat, tiny, tmp_path / "out")).status == 0
    assert state() == before


# Backbones


def test_missing_backbone_file(refused, eurosat, tmp_path):
    missing = tmp_path / "vit.pt"
    refused(arguments(eurosat, missing, tmp_path / "out"), f"{missing} does not exist", "ViT-B/16")


@pytest.mark.parametrize("name", ["ViT-B/61", "ViTB16", "ViT-B-16:laion3b"])
def test_an_unknown_backbone_name(name, refused, eurosat, tmp_path):
    refused(arguments(eurosat, name, tmp_path / "out"), name.split(":")[-1], "laion2b" if ":" in name else "ViT-B/16")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("share", [0, 0.5, 0.999])
def test_truncated_backbone_file(share, suffix, refused, eurosat, tiny, tmp_path):
    from safetensors.torch import save_file

    whole, cut = tmp_path / "whole", tmp_path / f"cut{suffix}"
    save_file(torch.load(tiny), whole) if suffix == ".safetensors" else whole.write_bytes(tiny.read_bytes())
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])
    refused(arguments(eurosat, cut, tmp_path / "out"), f"backbone file {cut} is damaged")


class Code:
    """Creates a file when it is unpickled without care."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"fc.weight": torch.zeros(2)}, "is not a CLIP: it has no tensor"),
        ({"epoch": 3}, "holds no state dict"),
        ([1, 2], "holds no state dict"),
        ({"a": Code()}, "holds more than tensors"),
    ],
    ids=["another model", "numbers", "a list", "code"],
)
def test_a_backbone_file_of_something_else(content, words, refused, eurosat, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "file.pt")
    refused(arguments(eurosat, tmp_path / "file.pt", tmp_path / "out"), words)
    assert not os.path.exists("executed")


@pytest.fixture
def resnet(tmp_path):
    vision = {"image_size": 32, "layers": (1, 1, 1, 1), "width": 16}
    torch.save(random_clip("RN50", vision, {"width": 64, "layers": 2}, 64).state_dict(), tmp_path / "rn.pt")
    return tmp_path / "rn.pt"


def test_a_resnet_takes_no_prompts_in_its_image_tower(refused, eurosat, resnet, tmp_path):
    refused(arguments(eurosat, resnet, tmp_path / "out"), "MPL needs a vision transformer such as ViT-B/16", resnet)


def test_a_resnet_serves_zero_shot_clip(launch, eurosat, resnet, tmp_path):
    ended = launch(*arguments(eurosat, resnet, tmp_path / "out", trainer="ZeroshotCLIP", options=["--eval-only"]))
    assert (ended.status, ended.errors) == (0, [])
    assert json.loads((tmp_path / "out/results.json").read_text())["n_test"] == 24


def test_images_of_another_size_than_the_backbone_reads(refused, eurosat, tiny, tmp_path):
    argv = arguments(eurosat, tiny, tmp_path / "out", "INPUT.SIZE", "(224, 224)")
    refused(argv, "INPUT.SIZE is (224, 224)", f"{tiny} reads (32, 32)")
