"""ImageNet and the four test sets of its classes: names, labels, cross-dataset transfer, start-up time."""

import json
import os
import time
from pathlib import Path

import pytest
from dassl.data.datasets import build_dataset
from drawn import make_cfg, run_for_real
from timm.data import ImageNetInfo
from trees import FOLDERS, build_tree, write_image

from datasets import DatasetError
from datasets.base import FewShotDataset

NAMES = {
    "imagenet": "ImageNet",
    "imagenetv2": "ImageNetV2",
    "imagenet_sketch": "ImageNetSketch",
    "imagenet_a": "ImageNetA",
    "imagenet_r": "ImageNetR",
}


@pytest.fixture
def load(tmp_path):
    """`load(name)` -> that dataset under `tmp_path`."""

    def load(name, *overrides):
        return build_dataset(make_cfg("CoOp", tmp_path, "", "", "DATASET.NAME", NAMES[name], *overrides))

    return load


@pytest.mark.parametrize("name", NAMES)
def test_sources_of_class_names(name, load, tmp_path, capsys):
    file = build_tree(name, tmp_path) / "classnames.txt"
    text = file.read_text()
    file.write_text(text.replace("tench", "a fish, tench"))
    assert load(name).classnames[0] == "a fish, tench"
    file.unlink()
    (tmp_path / "imagenet").mkdir(exist_ok=True)
    (tmp_path / "imagenet/classnames.txt").write_text(text.replace("tench", "carp"))
    assert load(name).classnames == ["carp", "crane", "crane", "maillot"]
    assert "open_clip" not in capsys.readouterr().out

    (tmp_path / "imagenet/classnames.txt").unlink()
    names = load(name).classnames
    if name == "imagenetv2":  # its folders are labels, 0 to 3
        assert names == ["tench", "goldfish", "great white shark", "tiger shark"]
    else:
        assert names == ["tench", "crane bird", "construction crane", "tights"]
    said = [line for line in capsys.readouterr().out.splitlines() if "open_clip" in line]
    assert len(said) == 1 and f"No {file}" in said[0]


def test_folder_without_a_class_name(load, tmp_path):
    file = build_tree("imagenet_r", tmp_path) / "classnames.txt"
    file.write_text("n01440764 tench\n")
    with pytest.raises(DatasetError, match=f"{file} has no name for the folder n02012849"):
        load("imagenet_r")
    file.write_text("n01440764 tench\nn02012849\n")
    with pytest.raises(DatasetError, match=f"{file} is damaged"):
        load("imagenet_r")


def test_folders_of_v2_are_labels(load, tmp_path):
    folder = build_tree("imagenetv2", tmp_path)
    wnids = ImageNetInfo().label_names()[:12]
    (folder / "classnames.txt").write_text("".join(f"{wnid} class {label}\n" for label, wnid in enumerate(wnids)))
    images = tmp_path / FOLDERS["imagenetv2"][0]
    for label in range(4, 12):
        write_image(images / f"{label}/image.jpeg", label)
    data = load("imagenetv2")
    assert data.classnames == [f"class {label}" for label in range(12)]
    assert all(Path(item.impath).parent.name == str(item.label) for item in data.test)
    write_image(images / "n01440764/image.jpeg", 0)
    with pytest.raises(DatasetError, match="n01440764 is not one of the 12 classes in .*classnames.txt"):
        load("imagenetv2")


def test_labels_of_imagenet_are_those_of_its_training_folders(load, tmp_path):
    images = build_tree("imagenet", tmp_path) / "images"
    for image in (images / "val/n01440764").iterdir():  # then the others of val would count from 0
        image.unlink()
    (images / "val/n01440764").rmdir()
    data = load("imagenet")
    assert [item.label for item in data.test] == [1, 1, 2, 2, 3, 3]
    assert data.val == data.test
    (images / "val/n00000000").mkdir()
    with pytest.raises(
        DatasetError, match="val/n00000000 is not a class of the training images: move it elsewhere, or get it"
    ):
        load("imagenet")


def test_other_files_are_not_images(load, tmp_path, capsys):
    images = build_tree("imagenet_a", tmp_path) / "imagenet-a"
    (images / "n01440764/.hidden.jpg").touch()
    (images / "n01440764/notes.txt").touch()
    (images / ".cache").mkdir()
    assert len(load("imagenet_a").test) == 8
    assert f"not images: 1, such as {images}/n01440764/notes.txt" in capsys.readouterr().out
    for image in (images / "n02012849").iterdir():
        image.unlink()
    with pytest.raises(DatasetError, match=f"no images in {images}/n02012849 .*python tools/prepare.py imagenet_a"):
        load("imagenet_a")


@pytest.fixture
def asked(script, tiny, tmp_path):
    """`asked("train", "imagenet")` -> the arguments with which scripts/mpl/xd_train.sh imagenet 1 calls train.py."""
    small = ["INPUT.SIZE", "(32, 32)", "DATALOADER.NUM_WORKERS", 0, "TRAINER.MPL.PROMPT_DEPTH", 3]

    def asked(step, name):
        ended, calls = script(f"mpl/xd_{step}.sh", name, 1, 1, *small, DATA=tmp_path, BACKBONE=tiny, SHOTS=2)
        assert ended.returncode == 0, ended.stderr
        return calls[0][1:]

    return asked


def test_transfer_from_imagenet_to_the_other_four(asked, launch, tmp_path, monkeypatch):
    for name in NAMES:
        build_tree(name, tmp_path)
        (run,) = run_for_real(launch, [asked("train" if name == "imagenet" else "test", name)], monkeypatch)
        assert (run["dataset"], run["n_test"], run["classes"]) == (NAMES[name], 8, "all")
    tested = sorted(file.parts[-5] for file in (tmp_path / "out/crossdataset/evaluation").rglob("results.json"))
    assert tested == sorted(FOLDERS)


def test_training_on_a_test_set_is_reported(asked, launch, tmp_path):
    build_tree("imagenet_r", tmp_path)
    call = [argument for argument in asked("train", "imagenet_r") if argument != "--skip-finished"]
    ended = launch(*call)
    assert ended.status == 0
    assert "ImageNetR has only test images: training on them is a rehearsal" in ended.printed


@pytest.fixture(scope="module")
def fifty_thousand(tmp_path_factory):
    """A root with 1,000 classes of ImageNet, 16 images for training and 50 for testing each, all of them empty."""
    root = tmp_path_factory.mktemp("imagenet")
    for part, size in (("train", 16), ("val", 50)):
        for wnid in ImageNetInfo().label_names():
            folder = root / "imagenet/images" / part / wnid
            folder.mkdir(parents=True)
            (folder / f"{0:08}.JPEG").touch()
            for number in range(1, size):
                os.link(folder / f"{0:08}.JPEG", folder / f"{number:08}.JPEG")
    return root


def test_50_000_images_are_read_in_less_than_5_seconds_and_a_missing_one_is_reported(fifty_thousand):
    cfg = make_cfg("CoOp", fifty_thousand, "", "", "DATASET.NAME", "ImageNet", "DATASET.NUM_SHOTS", 16)
    started = time.process_time()  # which does not depend on other processes
    data = build_dataset(cfg)
    assert (len(data.train_x), len(data.test), data.num_classes) == (16000, 50000, 1000)
    assert time.process_time() - started < 5

    class Listed(FewShotDataset):
        dataset_dir, image_dir, split_file = "imagenet", "images", "split.json"

    sizes = {"train": 1, "val": 0, "test": 50}
    split = {
        part: [
            [f"{'train' if part == 'train' else 'val'}/{wnid}/{number:08}.JPEG", label, wnid]
            for label, wnid in enumerate(ImageNetInfo().label_names())
            for number in range(size)
        ]
        for part, size in sizes.items()
    }
    split["test"][123][0] = "val/n01440764/absent.JPEG"
    split["test"][123][1:] = [0, "n01440764"]
    (fifty_thousand / "imagenet/split.json").write_text(json.dumps(split))
    with pytest.raises(DatasetError, match="1 of 51000 images of Listed are missing, the first .*/absent.JPEG"):
        Listed(cfg)
