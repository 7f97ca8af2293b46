"""The user's own images: layouts, names, seeded splits, and the examples of docs/own_classes.md."""

import json
import os
import re
import shutil

import pytest
import torch
from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from drawn import arguments, make_cfg, run_for_real
from trees import write_image

from common.errors import UsageError
from common.start import ROOT
from datasets import DatasetError, splits
from datasets.files import File
from datasets.preparing import sources
from experiments.results import describe

pytestmark = pytest.mark.slow

SMALL = ["INPUT.SIZE", "(32, 32)", "DATALOADER.NUM_WORKERS", 0, "TRAINER.MPL.PROMPT_DEPTH", 3]
BIRDS = ("blue_tit", "house_sparrow", "robin")


def folders(parent, size, classes=BIRDS):
    first = {"test": 10, "val": 20}.get(parent.name, 0)  # so that no two images are equal
    for label, name in enumerate(classes):
        for number in range(size):
            write_image(parent / name / f"{number}.jpg", 100 * label + first + number)


@pytest.fixture
def birds(tmp_path):
    """A folder with 3 images a class to learn from and 2 to test on."""
    folders(tmp_path / "birds/train", 3)
    folders(tmp_path / "birds/test", 2)
    return tmp_path / "birds"


@pytest.fixture
def unsplit(tmp_path):
    """A folder with 10 images a class."""
    folders(tmp_path / "birds", 10)
    return tmp_path / "birds"


def load(root, *overrides):
    return build_dataset(make_cfg("CoOp", root, "", "", "DATASET.NAME", "ImageFolder", *overrides))


def sizes(data):
    return len(data.train_x), data.val and len(data.val), len(data.test)


def test_train_val_and_test_folders(birds):
    data = load(birds)
    assert (sizes(data), data.classnames) == ((9, None, 6), ["blue tit", "house sparrow", "robin"])
    assert data.test[2].impath == f"{birds}/test/house_sparrow/0.jpg" and data.test[2].label == 1
    folders(birds / "val", 1, ["robin"])
    new = load(birds, "DATASET.SUBSAMPLE_CLASSES", "new", "DATASET.NUM_SHOTS", 2)
    assert (sizes(new), new.classnames, new.val[0].label) == ((2, 1, 2), ["robin"], 0)


def test_image_suffixes_and_other_files(birds, capsys):
    write_image(birds / "train/robin/A.JPEG", 0)
    write_image(birds / "train/robin/b.webp", 0)
    (birds / "train/robin/raw.heic").touch()
    (birds / "train/.DS_Store").touch()
    assert sizes(load(birds))[0] == 11
    said = capsys.readouterr().out
    assert f"Files in {birds}/train that are not images: 1, such as {birds}/train/robin/raw.heic" in said


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("classnames.txt", "robin European robin\nblue_tit   blue tit \nhouse_sparrow sparrow\nwren not here\n"),
        ("classnames.json", '{"robin": "European robin", "blue_tit": "blue tit", "house_sparrow": "sparrow"}'),
        ("classnames.txt", "\ufeffblue_tit blue tit\r\nhouse_sparrow sparrow\r\nrobin European robin"),  # by Notepad
    ],
)
def test_file_of_class_names(file, text, birds, capsys):
    (birds / file).write_text(text, encoding="utf-8")
    assert load(birds).classnames == ["blue tit", "sparrow", "European robin"]
    assert f"Class names: {birds / file}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("classnames.txt", "robin European robin\n", "has no name for the folder blue_tit"),
        ("classnames.txt", "blue_tit\n", "is damaged"),
        ("classnames.json", '{"robin": ', "is not JSON"),
        ("classnames.json", '{"robin": 3}', 'is invalid: expected {"FOLDER": "NAME", ...}'),
    ],
)
def test_invalid_class_names_are_rejected(file, text, words, birds):
    (birds / file).write_text(text)
    with pytest.raises(UsageError, match=re.escape(words)):
        load(birds)


def test_undecodable_names(birds):
    byte = os.fsdecode(b"\xe9")
    write_image(birds / f"train/robin/{byte}.jpg", 0)
    assert sizes(load(birds)) == (10, None, 6)
    (birds / "train/robin").rename(birds / f"train/robin{byte}")
    with pytest.raises(DatasetError, match=r"'robin\\udce9' has control characters"):
        load(birds)


def test_base_and_new_classes_need_images(birds):
    shutil.rmtree(birds / "test/robin")
    assert sizes(load(birds)) == (9, None, 4)
    with pytest.raises(DatasetError, match="no images for testing with SUBSAMPLE_CLASSES new: see docs"):
        load(birds, "DATASET.SUBSAMPLE_CLASSES", "new")


def test_inconsistent_folders_are_rejected(birds, tmp_path):
    with pytest.raises(DatasetError, match=f"no folder {tmp_path}/nowhere: .*docs/own_classes.md"):
        load(tmp_path / "nowhere")
    folders(birds / "test", 1, ["wren"])
    with pytest.raises(DatasetError, match="class 'wren' .* has images for validation or test, and none for training"):
        load(birds)
    (birds / "train/wren").mkdir()
    with pytest.raises(DatasetError, match=f"no images in {birds}/train/wren"):
        load(birds)
    with pytest.raises(DatasetError, match="already has folders train and test: remove DATASET.SPLIT_SEED"):
        load(birds, "DATASET.SPLIT_SEED", 1)
    shutil.rmtree(birds / "test")
    with pytest.raises(DatasetError, match=f"no folders train and test in {birds}: .*SPLIT_SEED 1 .* YAML file"):
        load(birds)


def test_seeded_split_is_saved_and_reused(unsplit, capsys):
    with pytest.raises(DatasetError, match="DATASET.SPLIT_SEED 1"):
        load(unsplit)
    first = load(unsplit, "DATASET.SPLIT_SEED", 1)
    assert sizes(first) == (15, 6, 9)
    assert [sum(item.label == label for item in first.test) for label in range(3)] == [3, 3, 3]
    paths = {item.impath for part in (first.train_x, first.val, first.test) for item in part}
    assert paths == set(map(str, unsplit.rglob("*.jpg")))
    file = unsplit / "split_seed1.json"
    assert f"Saved as {file}; later runs use it" in capsys.readouterr().out
    assert [path for path in unsplit.iterdir() if path.is_file()] == [file]

    (unsplit / splits.FOLDER).mkdir()  # by `prepare.py splits`
    write_image(unsplit / "robin/later.jpg", 0)  # is not in the split
    again, other = load(unsplit, "DATASET.SPLIT_SEED", 1), load(unsplit, "DATASET.SPLIT_SEED", 2)
    assert [item.impath for item in again.test] == [item.impath for item in first.test]
    assert {item.impath for item in other.test} != {item.impath for item in first.test}


def test_saved_split_of_other_images_is_rejected(unsplit):
    seed = ("DATASET.SPLIT_SEED", 1)
    load(unsplit, *seed)
    (unsplit / "robin/0.jpg").unlink()
    with pytest.raises(DatasetError, match=f"1 of 30 images .* the first {unsplit}/robin/0.jpg"):
        load(unsplit, *seed)
    folders(unsplit, 1, ["wren"])
    file = unsplit / "split_seed1.json"
    with pytest.raises(DatasetError, match=f"{file} was made from other classes or class names: delete it"):
        load(unsplit, *seed)
    file.unlink()
    with pytest.raises(DatasetError, match=f"{unsplit}/wren/0.jpg is the only image of its class"):
        load(unsplit, *seed)


def test_split_without_a_writable_folder_is_the_same_in_each_run(unsplit, monkeypatch, capsys):
    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(splits, "scratch", refuse)  # the user may be root
    first, again = (load(unsplit, "DATASET.SPLIT_SEED", 1) for _ in range(2))
    assert [item.impath for item in first.train_x] == [item.impath for item in again.train_x]
    assert f"Split not saved in {unsplit}/split_seed1.json: Permission denied" in capsys.readouterr().out


# docs/own_classes.md

DOCUMENT = (ROOT / "docs/own_classes.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)


@pytest.fixture
def example(birds, tiny, script, launch, tmp_path, monkeypatch):
    """`example(line)` runs a command of the document, with the configuration of the document; returns results."""
    clone = tmp_path / "clone"
    for folder in ("scripts", "configs", "tools", "experiments", "common", "clip", "trainers"):
        shutil.copytree(ROOT / folder, clone / folder)
    (yaml,) = blocks("yaml")
    (clone / re.match(r"# (\S+)", yaml)[1]).write_text(yaml)

    def example(line):
        name, *arguments = line.partition("bash scripts/")[2].split("#")[0].split()
        if "zsclip" not in name:
            arguments.insert(arguments.index("1") + 1, 1)  # epochs, after the seed
        ended, asked = script(name, *arguments, *SMALL, root=clone, DATA=birds, BACKBONE=tiny, SHOTS=2)
        assert ended.returncode == 0, ended.stderr
        calls = [[str(clone / item) if item.startswith("configs/") else item for item in call] for call in asked]
        return run_for_real(launch, [call[1:] for call in calls], monkeypatch)

    return example


def test_example_of_the_docs(example, capsys):
    (block,) = [block for block in blocks("bash") if "zeroshot.sh birds" in block]
    commands = block.splitlines()
    runs = [run for line in commands for run in example(line)]
    assert [(run["trainer"], run["dataset"], run["classes"], run["n_test"]) for run in runs] == [
        ("ZeroshotCLIP", "birds", "all", 6),
        ("MPL", "birds", "all", 6),
        ("MPL", "birds", "base", 4),
        ("MPL", "birds", "new", 2),
    ]


def test_dataset_class_of_the_docs(tmp_path, monkeypatch):
    """Without and with files to download."""
    (tmp_path / "repository/configs/datasets").mkdir(parents=True)
    (tmp_path / "repository/configs/datasets/mushrooms.yaml").write_text("DATASET: {NAME: Mushrooms}\n")
    monkeypatch.setattr(sources, "ROOT", tmp_path / "repository")
    cfg = make_cfg("CoOp", tmp_path, "", "", "DATASET.NAME", "Mushrooms")
    attributes, files = blocks("python")
    registered = DATASET_REGISTRY._obj_map
    remedies = "ask the mycologists for it", f"get it by: python tools/prepare.py mushrooms --root {tmp_path}"
    for code, remedy in zip((attributes, re.sub(r"    remedy = .*\n", files, attributes)), remedies, strict=True):
        monkeypatch.setattr(DATASET_REGISTRY, "_obj_map", {**registered})
        exec(code, {"__name__": "datasets.mushrooms", "File": File})
        with pytest.raises(DatasetError, match=f"no folder .*mushrooms: .* or {remedy}"):
            build_dataset(cfg)
    assert [file.name for file in sources.downloadable()["mushrooms"].files] == ["split.json", "photos.zip"]
    write_image(tmp_path / "mushrooms/photos/1.jpg", 0)
    split = dict.fromkeys(("train", "val", "test"), [["1.jpg", 0, "death cap"]])
    (tmp_path / "mushrooms/split.json").write_text(json.dumps(split))
    assert build_dataset(cfg).classnames == ["death cap"]


def test_own_images_have_the_name_of_their_yaml_file(birds, tiny, tmp_path, launch):
    """In results.json, in checkpoints and in messages; a run of before, with "ImageFolder", still counts."""
    yaml, out = tmp_path / "birds.yaml", tmp_path / "out"
    yaml.write_text(blocks("yaml")[0])
    few = ["OPTIM.MAX_EPOCH", 1, "DATASET.NUM_SHOTS", 1]
    argv = arguments(birds, tiny, out, *few, options=["--dataset-config-file", yaml, "--skip-finished"])
    assert launch(*argv).status == 0
    found = json.loads((out / "results.json").read_text())
    assert found["dataset"] == "birds" and describe(found).startswith("MPL on birds 1 shots")
    checkpoint = torch.load(out / "MultiModalPromptLearner/model.pth.tar-1", weights_only=True)
    assert checkpoint["metadata"]["dataset"] == "birds"
    for recorded, status in (("birds", 0), ("ImageFolder", 0), ("EuroSAT", 2)):
        (out / "results.json").write_text(json.dumps(found | {"dataset": recorded}))
        assert launch(*argv).status == status
    tests = ["--eval-only", "--model-dir", out, "--dataset-config-file", yaml]
    assert launch(*arguments(birds, tiny, tmp_path / "named", "DATASET.TITLE", "my birds", options=tests)).status == 0
    assert json.loads((tmp_path / "named/results.json").read_text())["dataset"] == "my birds"
