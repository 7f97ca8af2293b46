"""The fifteen datasets: original folder layouts, labels and names, the published splits, transfer
from ImageNet.
"""

import os
import random
from hashlib import sha256
from pathlib import Path

import pytest
import yaml
from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from drawn import make_cfg
from marks import of_json, one_line, thorough_but, to_json
from timm.data import ImageNetInfo
from trees import FOLDERS, LAYOUTS, NAMES, WNIDS, build_tree, write_image

from common.start import ROOT
from datasets import DatasetError
from datasets.base import same_names

IMAGENETS = ("imagenet", *FOLDERS)
CLASSES = {name: list(layout.classes.values()) for name, layout in LAYOUTS.items()}
CLASSES |= {"fgvc_aircraft": ["707-320", "727-200", "A300B4", "Yak-42 of four words"]}
CLASSES |= dict.fromkeys(IMAGENETS, list(WNIDS.values()))


def class_of(name):
    """The dataset class that configs/datasets/<name>.yaml names."""
    config = yaml.safe_load((ROOT / f"configs/datasets/{name}.yaml").read_text())
    return DATASET_REGISTRY.get(config["DATASET"]["NAME"])


@pytest.fixture
def load(tmp_path):
    """`load(name, "DATASET.NUM_SHOTS", 2)` -> that dataset under `tmp_path`."""

    def load(name, *overrides):
        return build_dataset(
            make_cfg("CoOp", tmp_path, "", "", "DATASET.NAME", class_of(name).__name__, *overrides)
        )

    return load


# Miniature trees


@pytest.mark.parametrize("name", NAMES)
def test_original_layout_is_read_with_labels_from_0_in_both_halves(name, load, tmp_path, capsys):
    build_tree(name, tmp_path)
    data = load(name, "DATASET.NUM_SHOTS", 2)
    names = CLASSES[name]
    n_val = None if name in FOLDERS else 8 if name == "imagenet" else 4
    assert (len(data.train_x), data.val and len(data.val), len(data.test)) == (8, n_val, 8)
    assert "results do not compare" in capsys.readouterr().out  # the counts of a miniature differ
    for which, expected in (("all", names), ("base", names[:2]), ("new", names[2:])):
        data = load(name, "DATASET.SUBSAMPLE_CLASSES", which)
        assert (data.num_classes, data.classnames) == (len(expected), expected)
        assert {item.classname for item in data.test} == set(expected)
        assert [item.label for item in data.test] == sorted([*range(len(expected))] * 2)


IMAGE = "images/banded/banded_0001.jpg"
NO_FILE = "1 of 24 images of .* are not regular files, the first PATH"


@pytest.mark.parametrize(
    ("name", "place", "replace", "words"),
    [
        ("dtd", ".", None, "no folder PATH: set --root"),
        ("imagenetv2", class_of("imagenetv2").image_dir, None, "no folder PATH"),
        ("eurosat", "split_zhou_EuroSAT.json", None, "PATH is missing"),
        ("dtd", IMAGE, None, "1 of 24 images of .* are missing, the first PATH"),
        ("dtd", IMAGE, os.mkdir, NO_FILE),
        ("dtd", IMAGE, lambda path: path.symlink_to("/dev/zero"), NO_FILE),
    ],
)
def test_what_is_missing_is_reported_with_the_command_to_get_it(
    name, place, replace, words, load, tmp_path
):
    path = build_tree(name, tmp_path) / place
    path.rename(tmp_path / "elsewhere")
    if replace:
        replace(path)
    command = f"get it by: python tools/prepare.py {name} --root {tmp_path}$"
    with pytest.raises(DatasetError, match=f"{words.replace('PATH', str(path))}.*{command}"):
        load(name)


# Published numbers

REAL = {  # test images of base and new classes; SHA-256 of all names in their order
    "dtd": (864, 828, "681d23b9cd3c2ede"),
    "eurosat": (4200, 3900, "bcff3a8022b63397"),
    "oxford_flowers": (1053, 1410, "0d27092c2140383d"),
    "oxford_pets": (1881, 1788, "8e35ab44db27d55a"),
    "stanford_cars": (4002, 4039, "2caca90b5c02b65f"),
    "ucf101": (1934, 1849, "d22e81fba7ebebf0"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", thorough_but(("dtd", "oxford_pets", "ucf101"), REAL))
def test_real_splits_have_the_published_sizes_classes_and_few_shot_images(
    name, load, capsys, monkeypatch, tmp_path
):
    kind = class_of(name)
    file = (
        ROOT.parent
        / "shared/data"
        / ("eurosat" if name == "eurosat" else "splits")
        / kind.split_file
    )
    if not file.is_file():
        pytest.skip(f"no {file.relative_to(ROOT.parent)} beside the repository")
    split = of_json(file)
    monkeypatch.setattr(kind, "check_images", lambda dataset, items: None)
    (tmp_path / kind.dataset_dir).mkdir()
    (tmp_path / kind.dataset_dir / kind.split_file).write_bytes(file.read_bytes())
    whole = load(name)
    assert (len(whole.train_x), len(whole.val), len(whole.test), whole.num_classes) == (
        *kind.counts,
        kind.n_classes,
    )
    assert "do not compare" not in capsys.readouterr().out
    *n_test, checksum = REAL[name]
    assert sha256("\n".join(whole.classnames).encode()).hexdigest().startswith(checksum)

    base, new = (load(name, "DATASET.SUBSAMPLE_CLASSES", which) for which in ("base", "new"))
    assert [len(base.test), len(new.test)] == n_test
    assert base.classnames + new.classnames == whole.classnames
    assert base.num_classes == (whole.num_classes + 1) // 2

    for seed, shots in [(seed, shots) for seed in (1, 2, 3) for shots in (1, 2, 4, 8, 16)]:
        few = load(name, "SEED", seed, "DATASET.NUM_SHOTS", shots)
        random.seed(seed)  # as in CoOp
        for part, items, n in (("train", few.train_x, shots), ("val", few.val, min(shots, 4))):
            by_label = {}
            for row in split[part]:
                by_label.setdefault(row[1], []).append(row[0])
            chosen = [
                path
                for paths in by_label.values()
                for path in random.sample(paths, min(n, len(paths)))
            ]
            assert [item.impath for item in items] == [f"{few.images}/{path}" for path in chosen]


# Labels and names


def rewritten(root, change):
    """The split file of a miniature of dtd, its rows changed and in the opposite order."""
    file = build_tree("dtd", root) / "split_zhou_DescribableTextures.json"
    split = of_json(file)
    to_json(
        file, {part: [change(part, *row) for row in rows[::-1]] for part, rows in split.items()}
    )
    return file


@pytest.mark.parametrize(
    "twin", ["cafe\u0301", "caf\xe9\u200b", "ca\u00adf\xe9", "\uff43af\xe9", "Caf\xe9"]
)
def test_names_with_the_same_look_count_as_equal(twin):
    assert "Classes with the same name: 'caf\xe9': " in same_names(["caf\xe9", "tea", twin])
    assert same_names(["cafe", "tea", twin]) == ""


NAMES_OF_DTD = CLASSES["dtd"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda label, name: (label, "crane" if label < 2 else name),
            ["crane", "crane", *NAMES_OF_DTD[2:]],
        ),
        (
            lambda label, name: (label, ("crane", "Crane")[label] if label < 2 else name),
            ["crane", "Crane", *NAMES_OF_DTD[2:]],
        ),
        (lambda label, name: (10 * label + 3, name), NAMES_OF_DTD),
        (lambda label, name: (3 - label, name), NAMES_OF_DTD[::-1]),
    ],
    ids=[
        "two labels with one name",
        "with one text",
        "gaps between labels",
        "another order than that of the folders",
    ],
)
def test_classes_are_numbered_by_their_labels(change, expected, load, tmp_path, capsys):
    rewritten(tmp_path, lambda part, path, label, name: [path, *change(label, name)])
    data = load("dtd")
    assert ("Classes with the same name: 'crane': " in capsys.readouterr().out) == (
        "crane" in expected
    )
    assert (data.num_classes, data.lab2cname) == (4, dict(enumerate(expected)))
    assert {(item.label, item.classname) for item in data.test} == set(data.lab2cname.items())
    assert load("dtd", "DATASET.SUBSAMPLE_CLASSES", "new").classnames == expected[2:]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda part, label, name: [3 - label if part == "val" else label, name],
            "label 0 is both",
        ),
        (
            lambda part, label, name: [0, "banded"] if part == "train" else [label, name],
            "class 'blotchy' (label 1) has images for validation or test, and none for training",
        ),
        (
            lambda part, label, name: [label - 1, name],
            "-1, 'banded'] is not [path, label from 0, class name]",
        ),
        (lambda part, label, name: [label, "a\x1b[2J"], "'a\\x1b[2J' has control characters"),
    ],
)
def test_invalid_labels_are_rejected(change, words, load, tmp_path):
    file = rewritten(tmp_path, lambda part, path, label, name: [path, *change(part, label, name)])
    with one_line(file, words, error=DatasetError) as error:
        load("dtd")
    assert str(error.value).endswith(f"python tools/prepare.py dtd --root {tmp_path}")


def test_control_characters_of_a_split_do_not_reach_the_terminal(load, prepare, tmp_path):
    rewritten(tmp_path / "data", lambda part, path, label, name: [f"\x1b[2J{path}", label, name])
    for arguments in (["fewshot", "dtd", "--shots", 1], ["--check", "dtd"]):
        ended = prepare(*arguments)
        said = "".join([ended.printed, *ended.errors])
        assert "\x1b" not in said and "\\x1b[2J" in said
    for key in ("DATASET.TITLE", "DATASET.TEMPLATE"):
        with one_line(key):
            load("dtd", key, "{}\x1b[2J")


def test_path_outside_the_dataset_is_rejected(load, tmp_path):
    rewritten(tmp_path, lambda part, path, label, name: [f"../../{path}", label, name])
    with pytest.raises(DatasetError, match="'../../.*' is outside the dataset's folder"):
        load("dtd")


# ImageNet and the four test sets of its classes


@pytest.mark.parametrize("name", IMAGENETS)
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
    v2 = ["tench", "goldfish", "great white shark", "tiger shark"]  # its folders are labels, 0 to 3
    assert load(name).classnames == (
        v2 if name == "imagenetv2" else ["tench", "crane bird", "construction crane", "tights"]
    )
    said = [line for line in capsys.readouterr().out.splitlines() if "open_clip" in line]
    assert len(said) == 1 and f"No {file}" in said[0]


def test_folders_of_v2_are_labels(load, tmp_path):
    folder = build_tree("imagenetv2", tmp_path)
    wnids = ImageNetInfo().label_names()[:12]
    (folder / "classnames.txt").write_text(
        "".join(f"{wnid} class {label}\n" for label, wnid in enumerate(wnids))
    )
    images = tmp_path / FOLDERS["imagenetv2"][0]
    for label in range(4, 12):
        write_image(images / f"{label}/image.jpeg", label)
    data = load("imagenetv2")
    assert data.classnames == [f"class {label}" for label in range(12)]
    assert all(Path(item.impath).parent.name == str(item.label) for item in data.test)
    write_image(images / "n01440764/image.jpeg", 0)
    with pytest.raises(
        DatasetError, match="n01440764 is not one of the 12 classes in .*classnames.txt"
    ):
        load("imagenetv2")


def test_labels_of_imagenet_are_those_of_its_training_folders(load, tmp_path):
    images = build_tree("imagenet", tmp_path) / "images"
    # Then the others of val would count from 0
    (images / "val/n01440764").rename(tmp_path / "elsewhere")
    data = load("imagenet")
    assert [item.label for item in data.test] == [1, 1, 2, 2, 3, 3]
    assert data.val == data.test
    (images / "val/n00000000").mkdir()
    words = "val/n00000000 is not a class of the training images: move it elsewhere, or get it"
    with pytest.raises(DatasetError, match=words):
        load("imagenet")
