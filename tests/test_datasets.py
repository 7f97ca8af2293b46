"""The fifteen datasets: original folder layouts, labels and names, and the published splits."""

import json
import os
import random
from hashlib import sha256
from pathlib import Path

import pytest
import yaml
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum, build_dataset
from dassl.engine import build_trainer
from drawn import make_cfg
from marks import thorough_but
from trees import LAYOUTS, NAMES, WNIDS, build_tree

from common.errors import UsageError
from datasets import DatasetError
from datasets.preparing.sources import load_cfg

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared/data"
TEST_ONLY = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
CLASSES = {name: list(layout.classes.values()) for name, layout in LAYOUTS.items()}
CLASSES |= {"fgvc_aircraft": ["707-320", "727-200", "A300B4", "Yak-42 of four words"]}


def class_of(name):
    """The dataset class that configs/datasets/<name>.yaml names."""
    config = yaml.safe_load((ROOT / f"configs/datasets/{name}.yaml").read_text())
    return DATASET_REGISTRY.get(config["DATASET"]["NAME"])


@pytest.fixture
def load(tmp_path):
    """`load(name, "DATASET.NUM_SHOTS", 2)` -> that dataset under `tmp_path`."""

    def load(name, *overrides):
        return build_dataset(make_cfg("CoOp", tmp_path, "", "", "DATASET.NAME", class_of(name).__name__, *overrides))

    return load


# Miniature trees


@pytest.mark.parametrize("name", NAMES)
def test_original_layout_is_read_and_trained_on(name, tiny, tmp_path, capsys):
    build_tree(name, tmp_path)
    few = ["DATASET.NAME", class_of(name).__name__, "DATASET.NUM_SHOTS", 2, "TRAINER.COOP.N_CTX", 4]
    trainer = build_trainer(make_cfg("CoOp", tmp_path, tiny, tmp_path / "out", *few))
    data = trainer.dm.dataset
    n_val = None if name in TEST_ONLY else 8 if name == "imagenet" else 4
    assert (len(data.train_x), data.val and len(data.val), len(data.test)) == (8, n_val, 8)
    assert data.classnames == CLASSES.get(name, list(WNIDS.values()))
    assert [item.label for item in data.test] == [0, 0, 1, 1, 2, 2, 3, 3]

    trainer.num_batches, before = 2, trainer.model.prompt_learner.ctx.clone()
    losses = [trainer.forward_backward(batch)["loss"] for trainer.batch_idx, batch in enumerate(trainer.train_loader_x)]
    assert len(losses) == 2 and all(loss > 0 for loss in losses)
    assert not before.equal(trainer.model.prompt_learner.ctx)
    assert "results do not compare" in capsys.readouterr().out  # the counts of a miniature differ


@pytest.mark.parametrize("name", NAMES)
def test_labels_of_base_and_new_classes_start_at_0(name, load, tmp_path):
    build_tree(name, tmp_path)
    names = CLASSES.get(name, list(WNIDS.values()))
    for which, expected in (("base", names[:2]), ("new", names[2:])):
        data = load(name, "DATASET.SUBSAMPLE_CLASSES", which)
        assert (data.num_classes, data.classnames) == (2, expected)
        assert {item.classname for item in data.test} == set(expected)
        assert [item.label for item in data.test] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("name", "part"), [("dtd", "."), ("imagenet", "train"), ("imagenet", "val"), ("imagenetv2", ".")]
)
def test_missing_folders_are_reported_with_the_command_to_get_them(name, part, load, tmp_path):
    command = f"python tools/prepare.py {name} --root {tmp_path}"
    folder = tmp_path / class_of(name).dataset_dir
    with pytest.raises(DatasetError, match=f"no folder {folder}: .*{command}$"):
        load(name)
    build_tree(name, tmp_path)
    (folder / class_of(name).image_dir / part).rename(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match=f"{command}$"):
        load(name)


@pytest.mark.parametrize("kind", ["named pipe", "folder", "device"])
def test_special_file_as_an_image_is_refused_before_training(kind, load, tmp_path):
    build_tree("dtd", tmp_path)
    path = Path(load("dtd").train_x[-1].impath)
    path.unlink()
    make = {"named pipe": os.mkfifo, "folder": os.mkdir, "device": lambda path: os.symlink("/dev/zero", path)}
    make[kind](path)
    with pytest.raises(DatasetError, match=f"1 of 24 images of .* are not regular files, the first {path}: get it by"):
        load("dtd")


@pytest.mark.parametrize("name", sorted({*NAMES} - {*TEST_ONLY, "imagenet"}))
def test_missing_split_or_image_is_reported(name, load, tmp_path):
    folder = build_tree(name, tmp_path)
    last = Path(load(name).test[-1].impath)
    last.unlink()
    command = f"get it by: python tools/prepare.py {name} --root {tmp_path}"
    with pytest.raises(DatasetError, match=f"1 of 24 images of .* are missing, the first {last}: {command}$"):
        load(name)
    (file,) = folder.glob("images_variant_test.txt" if name == "fgvc_aircraft" else "split_zhou_*.json")
    file.unlink()
    with pytest.raises(DatasetError, match=f"{file} is missing: {command}$"):
        load(name)


def test_orientation_of_images_is_ignored_in_published_datasets():
    assert all(not load_cfg(name).INPUT.EXIF_ORIENTATION for name in NAMES)
    assert load_cfg("image_folder").INPUT.EXIF_ORIENTATION


# Published numbers

REAL = {  # classes: first, last of base, first of new, last; test images of base and new; SHA-256 of all names
    "dtd": ("banded marbled matted zigzagged", 864, 828, "681d23b9cd3c2ede"),
    "eurosat": ("Annual_Crop_Land Industrial_Buildings Pasture_Land Sea_or_Lake", 4200, 3900, "bcff3a8022b63397"),
    "oxford_flowers": ("pink_primrose petunia wild_pansy blackberry_lily", 1053, 1410, "0d27092c2140383d"),
    "oxford_pets": ("abyssinian keeshond leonberger yorkshire_terrier", 1881, 1788, "8e35ab44db27d55a"),
    "stanford_cars": (
        "2000_AM_General_Hummer_SUV 1998_Eagle_Talon_Hatchback 2012_FIAT_500_Abarth 2012_smart_fortwo_Convertible",
        4002,
        4039,
        "2caca90b5c02b65f",
    ),
    "ucf101": ("Apply_Eye_Makeup Long_Jump Lunges Yo_Yo", 1934, 1849, "d22e81fba7ebebf0"),
}


@pytest.fixture
def real(tmp_path, request):
    """The name of a dataset, its real split, and empty files instead of its images under `tmp_path`."""
    name = request.param
    kind = class_of(name)
    file = SHARED / ("eurosat" if name == "eurosat" else "splits") / kind.split_file
    if not file.is_file():
        pytest.skip(f"no {file.relative_to(ROOT.parent)} beside the repository")
    images = tmp_path / kind.dataset_dir / kind.image_dir
    split = json.loads(file.read_text())
    paths = {f"{images}/{row[0]}" for rows in split.values() for row in rows}
    for folder in {path.rpartition("/")[0] for path in paths}:
        Path(folder).mkdir(parents=True)
    for path in paths:
        open(path, "x").close()
    (tmp_path / kind.dataset_dir / kind.split_file).write_bytes(file.read_bytes())
    return name, split


@pytest.mark.slow
@pytest.mark.parametrize("real", thorough_but(("dtd", "oxford_pets", "ucf101"), REAL), indirect=True)
def test_real_splits_have_the_published_sizes_classes_and_few_shot_images(real, load, capsys):
    (name, split), kind = real, class_of(real[0])
    whole = load(name)
    assert (len(whole.train_x), len(whole.val), len(whole.test), whole.num_classes) == (*kind.counts, kind.n_classes)
    assert "do not compare" not in capsys.readouterr().out
    ends, *n_test, checksum = REAL[name]
    assert sha256("\n".join(whole.classnames).encode()).hexdigest().startswith(checksum)

    base, new = (load(name, "DATASET.SUBSAMPLE_CLASSES", which) for which in ("base", "new"))
    names = [half.classnames[end].replace(" ", "_") for half in (base, new) for end in (0, -1)]
    assert (" ".join(names), [len(base.test), len(new.test)]) == (ends, n_test)
    assert base.classnames + new.classnames == whole.classnames
    assert base.num_classes == (whole.num_classes + 1) // 2

    for seed, shots in [(seed, shots) for seed in (1, 2, 3) for shots in (1, 2, 4, 8, 16)]:
        few = load(name, "SEED", seed, "DATASET.NUM_SHOTS", shots)
        random.seed(seed)  # as in CoOp
        for part, items, n in (("train", few.train_x, shots), ("val", few.val, min(shots, 4))):
            by_label = {}
            for row in split[part]:
                by_label.setdefault(row[1], []).append(row[0])
            chosen = [path for paths in by_label.values() for path in random.sample(paths, min(n, len(paths)))]
            assert [item.impath for item in items] == [f"{few.images}/{path}" for path in chosen]


# Labels and names


def rewrite(folder, change):
    """Change every row of a tree's split file."""
    (file,) = folder.glob("split_zhou_*.json")
    split = json.loads(file.read_text())
    file.write_text(json.dumps({part: [change(part, *row) for row in rows] for part, rows in split.items()}))
    return file


def test_two_labels_with_one_class_name_are_two_classes(load, tmp_path):
    rewrite(build_tree("dtd", tmp_path), lambda part, path, label, name: [path, label, "crane" if label < 2 else name])
    data = load("dtd")
    assert data.classnames == ["crane", "crane", "braided", "zigzagged"]
    assert (data.num_classes, {item.label for item in data.test}) == (4, {0, 1, 2, 3})


def test_gaps_between_labels_are_closed(load, tmp_path):
    rewrite(build_tree("dtd", tmp_path), lambda part, path, label, name: [path, 10 * label + 3, name])
    data = load("dtd")
    assert data.lab2cname == dict(enumerate(CLASSES["dtd"]))
    assert {(item.label, item.classname) for item in data.test} == set(data.lab2cname.items())
    assert load("dtd", "DATASET.SUBSAMPLE_CLASSES", "new").classnames == CLASSES["dtd"][2:]


def test_the_order_of_class_folders_and_of_rows_does_not_matter(load, tmp_path):
    file = rewrite(build_tree("dtd", tmp_path), lambda part, path, label, name: [path, 3 - label, name])
    split = json.loads(file.read_text())
    file.write_text(json.dumps({part: rows[::-1] for part, rows in split.items()}))
    data = load("dtd")
    assert data.classnames == CLASSES["dtd"][::-1]
    assert all(Path(item.impath).parent.name == data.classnames[item.label] for item in data.test)


MISTAKES = {
    "two names": (
        lambda part, label, name: [label, "x" if part == "test" else name],
        "label 0 is both 'banded' and 'x'",
    ),
    "two orders": (lambda part, label, name: [3 - label if part == "val" else label, name], "label 3 is both"),
    "not learned": (
        lambda part, label, name: [0, "banded"] if part == "train" else [label, name],
        "class 'blotchy' (label 1) has images for validation or test, and none for training",
    ),
    "negative": (lambda part, label, name: [label - 1, name], "-1, 'banded'] is not [path, label from 0, class name]"),
    "truth": (lambda part, label, name: [bool(label), name], "False, 'banded'] is not"),
    "text": (lambda part, label, name: [str(label), name], "'0', 'banded'] is not"),
    "unprintable": (lambda part, label, name: [label, "a\x1b[2J"], "the name 'a\\x1b[2J' of label 0 cannot be printed"),
    "name": (lambda part, label, name: [label, 7], "0, 7] is not"),
    "no name": (lambda part, label, name: [label, " "], "0, ' '] is not"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_invalid_labels_are_rejected(mistake, load, tmp_path):
    change, words = MISTAKES[mistake]
    file = rewrite(build_tree("dtd", tmp_path), lambda part, path, label, name: [path, *change(part, label, name)])
    with pytest.raises(DatasetError) as error:
        load("dtd")
    assert str(file) in str(error.value) and words in str(error.value)
    assert str(error.value).endswith(f"python tools/prepare.py dtd --root {tmp_path}")


def test_path_outside_the_dataset_is_rejected(load, tmp_path):
    rewrite(build_tree("dtd", tmp_path), lambda part, path, label, name: [f"../../{path}", label, name])
    with pytest.raises(DatasetError, match="'../../banded/banded_0001.jpg' is outside the dataset's folder"):
        load("dtd")


@pytest.mark.parametrize("line", ["0000001 unheard of", "0000001", "\xff"])
def test_damaged_list_of_aircraft(line, load, tmp_path):
    file = build_tree("fgvc_aircraft", tmp_path) / "images_variant_train.txt"
    file.write_bytes(file.read_bytes() + line.encode("latin-1"))
    with pytest.raises(DatasetError, match=f"{file} is .*python tools/prepare.py fgvc_aircraft"):
        load("fgvc_aircraft")


def test_gaps_between_labels_of_other_datasets_are_rejected(tiny, tmp_path):
    class Gaps(DatasetBase):
        def __init__(self, cfg):
            folder = build_tree("dtd", tmp_path)
            items = [Datum(str(path), label, 0, f"class {label}") for label in (0, 2) for path in folder.rglob("*.jpg")]
            super().__init__(train_x=items, test=items)

    DATASET_REGISTRY.register(force=True)(Gaps)
    try:
        with pytest.raises(UsageError, match="Gaps has 2 class names for labels 0 to 2: number its classes without"):
            build_trainer(make_cfg("CoOp", tmp_path, tiny, tmp_path / "out", "DATASET.NAME", "Gaps"))
    finally:
        del DATASET_REGISTRY._obj_map["Gaps"]
