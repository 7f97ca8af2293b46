"""The synthetic datasets and the small CLIP."""

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from drawn import card, make_cfg
from marks import of_json

from clip import load, load_backbone, weights
from clip.errors import ClipError
from common.start import ROOT
from datasets import small_world
from datasets.small_world import SmallObjects, SmallWorldSet
from datasets.small_world.drawing import SIZE, Style, Subject, draw

SETS = [
    value
    for value in vars(small_world).values()
    if isinstance(value, type) and issubclass(value, SmallWorldSet)
]
SETS.remove(SmallWorldSet)


@pytest.fixture
def few():
    """A set of three classes of a few images, drawn quickly."""

    class Few(SmallObjects):
        dataset_dir = "few"
        subjects = SmallObjects.subjects[:3]
        per_class = {"train": 2, "val": 1, "test": 1}

    return Few


def read(name: str, root: Path, *pairs):
    pairs = ["DATASET.NAME", name, "DATASET.NUM_SHOTS", 2, *pairs]
    return build_dataset(make_cfg("CoOp", root, "", "", *pairs))


DRAWN = {  # the checksum of the pixels of one image of each class
    "SmallSource": "60227c79b4967585",
    "SmallSourceNoisy": "bc16ab1d24af7263",
    "SmallSourceOutline": "72b5efd581733087",
    "SmallObjects": "c734963ead2c0083",
    "SmallShapes": "5eb1437c106972d6",
    "SmallTextures": "d52e9256de4568f1",
    "SmallCounts": "70e989aad6baf0df",
    "SmallLand": "913684b32e629649",
    "SmallTuning": "a53c6cab077302ba",
}


@pytest.mark.parametrize("kind", SETS)
def test_sets_are_registered_and_drawn_as_ever(kind):
    names = [subject.words for subject in kind.subjects]
    assert len(set(names)) == len(names) >= 10
    assert DATASET_REGISTRY.get(kind.__name__) is kind
    assert re.sub(r"(?<!^)([A-Z])", r"_\1", kind.__name__).lower() == kind.dataset_dir
    assert (
        f"NAME: {kind.__name__}\n"
        in (ROOT / f"configs/datasets/{kind.dataset_dir}.yaml").read_text()
    )
    assert len(card(kind.__name__)) == 3
    digest = hashlib.sha256()
    for number, subject in enumerate(kind.subjects):
        digest.update(
            np.asarray(draw(subject, kind.style, np.random.default_rng(number))).tobytes()
        )
    assert digest.hexdigest()[:16] == DRAWN[kind.__name__]


def test_class_names_are_as_ever():
    names = [subject.words for kind in SETS for subject in kind.subjects]
    assert {
        "red striped triangle",
        "two hearts",
        "one ring",
        "river in forest",
        "zigzag pattern",
    } - {*names} == set()
    assert hashlib.sha256("\n".join(names).encode()).hexdigest()[:16] == "aef5de366d102174"


def test_drawn_set_has_the_common_layout_and_halves(drawn):
    dataset = read("SmallObjects", drawn)
    split = of_json(drawn / "small_objects/split.json")
    assert {part: len(rows) for part, rows in split.items()} == {
        "train": 256,
        "val": 64,
        "test": 640,
    }
    names = [subject.words for subject in SmallObjects.subjects]
    assert dataset.classnames == names and len(dataset.train_x) == len(dataset.val) == 32
    for half, part in (("base", names[:8]), ("new", names[8:])):
        assert read("SmallObjects", drawn, "DATASET.SUBSAMPLE_CLASSES", half).classnames == part


def test_set_is_drawn_once_and_equally_by_several_processes(few, tmp_path):
    (tmp_path / ".few.partial-killed/few").mkdir(parents=True)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(few.prepare, [tmp_path / "few"] * 4))
    assert [path.name for path in tmp_path.iterdir()] == ["few"]
    files = {
        path.relative_to(tmp_path / "few"): path.read_bytes() for path in tmp_path.rglob("*.png")
    }
    assert len(files) == 12
    image = tmp_path / "few" / next(iter(files))
    image.write_bytes(b"kept")
    few.prepare(tmp_path / "few")
    assert image.read_bytes() == b"kept"


# --- the small CLIP


def test_small_backbone_has_twelve_layers_and_64_pixels():
    model, transform = load("small", device="cpu")
    assert model.visual.input_resolution == SIZE
    assert len(model.visual.transformer.resblocks) == len(model.transformer.resblocks) == 12
    assert {value.dtype for value in weights.read_state_dict(weights.SMALL).values()} == {
        torch.float16
    }
    image = transform(draw(Subject("red", "plain", "star"), Style(), np.random.default_rng(0)))
    assert model.encode_image(image[None]).shape == (1, 128)


@pytest.mark.parametrize("harm", ["changed", "gone"])
def test_damaged_weights_are_reported_with_the_way_to_restore_them(harm, tmp_path, monkeypatch):
    copy = tmp_path / "clip/small.safetensors"
    copy.parent.mkdir()
    content = bytearray(weights.SMALL.read_bytes())
    content[-100] ^= 1
    if harm == "changed":
        copy.write_bytes(content)
    monkeypatch.setattr(weights, "SMALL", copy)
    with pytest.raises(ClipError, match="git checkout -- clip/small.safetensors"):
        load_backbone("small")
