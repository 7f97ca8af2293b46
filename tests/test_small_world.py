"""The drawn datasets and the small CLIP."""

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from drawn import METHODS as METHODS
from drawn import card
from PIL import Image

from clip import load, load_backbone, weights
from clip.errors import ClipError
from datasets import DatasetError, small_world
from datasets.small_world import SmallObjects, SmallSource, SmallWorldSet
from datasets.small_world.drawing import SIZE, Style, Subject, draw
from experiments.configuration import extend_cfg
from experiments.protocols import Step
from experiments.results import read_results
from experiments.studies.spec import Study, Variant
from train import main

ROOT = Path(__file__).parent.parent
SETS = [value for value in vars(small_world).values() if isinstance(value, type) and issubclass(value, SmallWorldSet)]
SETS.remove(SmallWorldSet)
TARGETS = ("SmallObjects", "SmallShapes", "SmallTextures", "SmallCounts", "SmallLand")


@pytest.fixture
def few(monkeypatch):
    """A set of three classes of a few images, drawn quickly."""

    class Few(SmallObjects):
        dataset_dir = "few"
        subjects = SmallObjects.subjects[:3]
        per_class = {"train": 2, "val": 1, "test": 1}

    return Few


def cfg_of(name: str, root: Path, *pairs):
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.merge_from_list(["DATASET.NAME", name, "DATASET.ROOT", str(root), "DATASET.NUM_SHOTS", 2, "SEED", 1, *pairs])
    return cfg


def pixels(subject, style, *seed) -> np.ndarray:
    return np.asarray(draw(subject, style, np.random.default_rng(seed)))


def test_drawing_depends_only_on_its_seed():
    subject = Subject("red", "striped", "triangle")
    assert np.array_equal(pixels(subject, Style(), 1), pixels(subject, Style(), 1))
    assert not np.array_equal(pixels(subject, Style(), 1), pixels(subject, Style(), 2))


@pytest.mark.parametrize(
    "name", ["red striped triangle", "three stars", "two crosses", "one ring", "river in forest", "sea"]
)
def test_class_names_of_subjects(name):
    subjects = {
        "red striped triangle": Subject("red", "striped", "triangle"),
        "three stars": Subject(shape="star", count=3),
        "two crosses": Subject(shape="cross", count=2),
        "one ring": Subject(shape="ring", count=1),
        "river in forest": Subject(ground="forest", feature="river"),
        "sea": Subject(ground="sea"),
    }
    assert subjects[name].words == name
    assert pixels(subjects[name], Style(), 0).shape == (SIZE, SIZE, 3)


def test_colour_texture_and_shape_are_visible():
    """Each attribute changes the image where the object is."""
    plain = Style(noise=(0, 0), blur=(0, 0), hue=0, rough=0, turn=0, shift=0, contrast=(1, 1))
    red = pixels(Subject("red", "plain", "square"), plain, 3)
    assert red[SIZE // 2, SIZE // 2, 0] > 2 * red[SIZE // 2, SIZE // 2, 1]
    for other in (
        Subject("blue", "plain", "square"),
        Subject("red", "striped", "square"),
        Subject("red", "plain", "star"),
    ):
        assert np.abs(red.astype(int) - pixels(other, plain, 3)).mean() > 5


def test_source_variants_and_targets():
    assert {kind.__name__ for kind in SETS} >= {"SmallSource", "SmallSourceNoisy", "SmallSourceOutline", *TARGETS}
    assert len(SmallSource.subjects) == 72
    for kind in SETS:
        names = [subject.words for subject in kind.subjects]
        assert len(set(names)) == len(names) >= 10
        assert DATASET_REGISTRY.get(kind.__name__) is kind
        folder = re.sub(r"(?<!^)([A-Z])", r"_\1", kind.__name__).lower()
        assert folder == kind.dataset_dir
        assert f"NAME: {kind.__name__}\n" in (ROOT / f"configs/datasets/{folder}.yaml").read_text()
        if issubclass(kind, SmallSource):
            assert names == [subject.words for subject in SmallSource.subjects]


def test_drawn_set_has_the_common_layout(drawn):
    dataset = SmallObjects(cfg_of("SmallObjects", drawn))
    split = json.loads((drawn / "small_objects/split.json").read_text())
    assert {part: len(rows) for part, rows in split.items()} == {"train": 256, "val": 64, "test": 640}
    assert dataset.num_classes == 16
    assert dataset.classnames == [subject.words for subject in SmallObjects.subjects]
    assert len(dataset.train_x) == len(dataset.val) == 32
    with Image.open(dataset.test[0].impath) as image:
        assert (image.size, image.mode) == ((SIZE, SIZE), "RGB")


def test_base_and_new_classes_are_the_halves(drawn):
    halves = [
        SmallObjects(cfg_of("SmallObjects", drawn, "DATASET.SUBSAMPLE_CLASSES", half)) for half in ("base", "new")
    ]
    assert [half.classnames for half in halves] == [
        [subject.words for subject in part] for part in (SmallObjects.subjects[:8], SmallObjects.subjects[8:])
    ]


def test_set_is_drawn_once_per_version(few, tmp_path, monkeypatch):
    folder = tmp_path / "few"
    few.prepare(folder)
    image = next(folder.glob("images/*/*.png"))
    first = image.read_bytes()
    image.write_bytes(b"kept")
    few.prepare(folder)
    assert image.read_bytes() == b"kept"
    monkeypatch.setattr(small_world, "VERSION", -1)
    few.prepare(folder)
    assert image.read_bytes() == first
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["few"]


def test_failed_drawing_leaves_nothing_behind(few, tmp_path, monkeypatch):
    monkeypatch.setattr(few, "style", replace(few.style, periods=None))  # fails at the first image
    with pytest.raises(TypeError):
        few.prepare(tmp_path / "few")
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_files_of_a_killed_process_are_replaced(few, tmp_path):
    for rest in (".few.partial", ".few.old", "few"):
        (tmp_path / rest).mkdir()
    (tmp_path / ".few.partial/split.json").write_text("{")
    few.prepare(tmp_path / "few")
    assert len(list((tmp_path / "few").glob("images/*/*.png"))) == 12
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path.name != "few"]


def test_set_is_drawn_by_one_of_several_threads(few, tmp_path, monkeypatch):
    drawn, draw_all = [], few.draw_all
    monkeypatch.setattr(few, "draw_all", lambda folder: (draw_all(folder), drawn.append(folder)))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(few.prepare, [tmp_path / "few"] * 4))
    assert len(drawn) == 1
    assert len(list(tmp_path.glob("few/images/*/*.png"))) == 12


def test_drawing_again_is_byte_identical(few, tmp_path):
    contents = []
    for name in ("one", "other"):
        np.random.seed(len(contents))  # must have no influence
        few.prepare(tmp_path / name)
        files = [path for path in sorted((tmp_path / name).rglob("*")) if path.is_file()]
        contents.append([(path.relative_to(tmp_path / name), path.read_bytes()) for path in files])
    assert contents[0] == contents[1]


def test_damaged_split_is_drawn_again_after_deletion(drawn, tmp_path):
    shutil.copytree(drawn / "small_objects", tmp_path / "data/small_objects")
    (tmp_path / "data/small_objects/split.json").write_text("{")
    with pytest.raises(DatasetError, match="is damaged") as caught:
        SmallObjects(cfg_of("SmallObjects", tmp_path / "data"))
    assert str(caught.value).endswith(f": delete {tmp_path}/data/small_objects, then it is drawn again")


def test_missing_image_is_reported_with_its_remedy(drawn, tmp_path):
    shutil.copytree(drawn / "small_objects", tmp_path / "data/small_objects")
    image = next(tmp_path.glob("data/small_objects/images/*/test_00.png"))
    image.unlink()
    with pytest.raises(DatasetError) as caught:
        SmallObjects(cfg_of("SmallObjects", tmp_path / "data"))
    assert str(image) in str(caught.value)
    assert f"delete {tmp_path}/data/small_objects, then it is drawn again" in str(caught.value)


def test_folder_with_other_files_is_not_changed(few, tmp_path):
    (tmp_path / "few").mkdir()
    (tmp_path / "few/mine.txt").write_text("mine")
    with pytest.raises(DatasetError, match="other files"):
        few.prepare(tmp_path / "few")
    assert (tmp_path / "few/mine.txt").read_text() == "mine"


def test_root_is_not_writable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="cannot draw SmallObjects"):
        SmallObjects(cfg_of("SmallObjects", tmp_path / "file"))


# --- the small CLIP


def test_small_backbone_has_twelve_layers_and_64_pixels():
    model = load_backbone("small")
    assert model.visual.input_resolution == SIZE
    assert len(model.visual.transformer.resblocks) == len(model.transformer.resblocks) == 12
    assert weights.SMALL.stat().st_size <= 30e6
    state = weights.read_state_dict(weights.SMALL)
    assert {value.dtype for value in state.values()} == {torch.float16}


def test_clip_load_of_small():
    model, transform = load("small", device="cpu")
    image = transform(draw(Subject("red", "plain", "star"), Style(), np.random.default_rng(0)))
    assert model.encode_image(image[None]).shape == (1, 128)


@pytest.mark.parametrize("harm", ["cut", "changed", "gone"])
def test_damaged_weights_are_reported_with_the_way_to_restore_them(harm, tmp_path, monkeypatch):
    copy = tmp_path / "clip/small.safetensors"
    copy.parent.mkdir()
    content = bytearray(weights.SMALL.read_bytes())
    content[-100] ^= 1
    if harm != "gone":
        copy.write_bytes(content if harm == "changed" else content[:1000])
    monkeypatch.setattr(weights, "SMALL", copy)
    with pytest.raises(ClipError, match="missing" if harm == "gone" else "damaged") as caught:
        load_backbone("small")
    assert "git checkout -- clip/small.safetensors" in str(caught.value)


def test_zero_shot_accuracy_agrees_with_the_card(drawn, tmp_path):
    stated = card("SmallObjects")
    for half, expected in zip(("all", "base", "new"), stated, strict=True):
        variant = Variant("ZeroshotCLIP", "ZeroshotCLIP", "small")
        study = Study((variant,), ("small_objects",), root=drawn, output=tmp_path / half)
        names = "small_objects", "few_shot", variant, "small_objects"
        run = study.run(Step(half, "run"), *names, 1, 16, "--eval-only")
        main(list(run.arguments))
        assert read_results(run.folder)["accuracy"] == pytest.approx(expected, abs=0.7)


def test_card_has_every_set():
    for kind in SETS:
        assert len(card(kind.__name__)) == 3


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_small_settings(method):
    assert (ROOT / "configs/trainers" / method / "small.yaml").is_file()
