"""The drawn datasets, the small CLIP that comes with the project, its pre-training, and the demo."""

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dassl.data.datasets import DATASET_REGISTRY
from PIL import Image

import train
from clip import load, load_backbone, weights
from clip.errors import ClipError
from datasets import DatasetError, small_world
from datasets.small_world import SmallObjects, SmallSource, SmallWorldSet
from datasets.small_world.drawing import SIZE, Style, Subject, draw
from tools import demo, pretrain_small_clip
from tools.base2new import read_results
from tools.runs import METHODS, Study, Variant

ROOT = Path(__file__).parent.parent
SETS = [value for value in vars(small_world).values() if isinstance(value, type) and issubclass(value, SmallWorldSet)]
SETS.remove(SmallWorldSet)
TARGETS = ("SmallObjects", "SmallShapes", "SmallTextures", "SmallCounts", "SmallLand")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A data folder with the demo's set in it."""
    root = tmp_path_factory.mktemp("data")
    SmallObjects.prepare(root / "small_objects")
    return root


@pytest.fixture
def few(monkeypatch):
    """A set of three classes of a few images, to be drawn in no time."""

    class Few(SmallObjects):
        dataset_dir = "few"
        subjects = SmallObjects.subjects[:3]
        per_class = {"train": 2, "val": 1, "test": 1}

    return Few


def cfg_of(name: str, root: Path, *pairs):
    cfg = train.get_cfg_default()
    train.extend_cfg(cfg)
    cfg.merge_from_list(["DATASET.NAME", name, "DATASET.ROOT", str(root), "DATASET.NUM_SHOTS", 2, "SEED", 1, *pairs])
    return cfg


def pixels(subject, style, *seed) -> np.ndarray:
    return np.asarray(draw(subject, style, np.random.default_rng(seed)))


def test_a_picture_depends_on_its_seed_alone():
    subject = Subject("red", "striped", "triangle")
    assert np.array_equal(pixels(subject, Style(), 1), pixels(subject, Style(), 1))
    assert not np.array_equal(pixels(subject, Style(), 1), pixels(subject, Style(), 2))


@pytest.mark.parametrize(
    "name", ["red striped triangle", "three stars", "two crosses", "one ring", "river in forest", "sea"]
)
def test_subjects_have_plain_names(name):
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


def test_colour_texture_and_shape_can_be_seen():
    """Each attribute alone changes the picture where the object is."""
    plain = Style(noise=(0, 0), blur=(0, 0), hue=0, rough=0, turn=0, shift=0, contrast=(1, 1))
    red = pixels(Subject("red", "plain", "square"), plain, 3)
    assert red[SIZE // 2, SIZE // 2, 0] > 2 * red[SIZE // 2, SIZE // 2, 1]
    for other in (
        Subject("blue", "plain", "square"),
        Subject("red", "striped", "square"),
        Subject("red", "plain", "star"),
    ):
        assert np.abs(red.astype(int) - pixels(other, plain, 3)).mean() > 5


def test_there_are_a_source_its_variants_and_five_targets():
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


def test_a_set_is_drawn_in_the_ordinary_layout_and_read_like_any_other(drawn):
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


def test_a_set_is_drawn_once_and_anew_for_another_version(few, tmp_path, monkeypatch):
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


def test_what_was_cut_off_while_drawing_leaves_nothing_behind(few, tmp_path, monkeypatch):
    monkeypatch.setattr(few, "style", replace(few.style, periods=None))  # fails at the first image
    with pytest.raises(TypeError):
        few.prepare(tmp_path / "few")
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_what_a_killed_process_has_left_is_no_set_and_goes(few, tmp_path):
    for rest in (".few.partial", ".few.old", "few"):
        (tmp_path / rest).mkdir()
    (tmp_path / ".few.partial/split.json").write_text("{")
    few.prepare(tmp_path / "few")
    assert len(list((tmp_path / "few").glob("images/*/*.png"))) == 12
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path.name != "few"]


def test_of_several_that_want_a_set_one_draws_it(few, tmp_path, monkeypatch):
    drawn, draw_all = [], few.draw_all
    monkeypatch.setattr(few, "draw_all", lambda folder: (draw_all(folder), drawn.append(folder)))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(few.prepare, [tmp_path / "few"] * 4))
    assert len(drawn) == 1
    assert len(list(tmp_path.glob("few/images/*/*.png"))) == 12


def test_a_set_drawn_again_is_the_same_to_the_byte(few, tmp_path):
    contents = []
    for name in ("one", "other"):
        np.random.seed(len(contents))  # none of its business
        few.prepare(tmp_path / name)
        files = [path for path in sorted((tmp_path / name).rglob("*")) if path.is_file()]
        contents.append([(path.relative_to(tmp_path / name), path.read_bytes()) for path in files])
    assert contents[0] == contents[1]


def test_a_damaged_split_is_had_again_by_one_deletion(drawn, tmp_path):
    shutil.copytree(drawn, tmp_path / "data")
    (tmp_path / "data/small_objects/split.json").write_text("{")
    with pytest.raises(DatasetError, match="is damaged") as caught:
        SmallObjects(cfg_of("SmallObjects", tmp_path / "data"))
    assert str(caught.value).endswith(f": delete {tmp_path}/data/small_objects, and it is drawn anew")


def test_an_image_that_is_missing_is_named_and_how_to_have_it_again(drawn, tmp_path):
    shutil.copytree(drawn, tmp_path / "data")
    image = next(tmp_path.glob("data/small_objects/images/*/test_00.png"))
    image.unlink()
    with pytest.raises(DatasetError) as caught:
        SmallObjects(cfg_of("SmallObjects", tmp_path / "data"))
    assert str(image) in str(caught.value)
    assert f"delete {tmp_path}/data/small_objects, and it is drawn anew" in str(caught.value)


def test_a_folder_of_something_else_is_left_alone(few, tmp_path):
    (tmp_path / "few").mkdir()
    (tmp_path / "few/mine.txt").write_text("mine")
    with pytest.raises(DatasetError, match="something else"):
        few.prepare(tmp_path / "few")
    assert (tmp_path / "few/mine.txt").read_text() == "mine"


def test_a_place_that_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="cannot draw SmallObjects"):
        SmallObjects(cfg_of("SmallObjects", tmp_path / "file"))


# --- the small CLIP


def test_small_is_a_backbone_of_twelve_layers_for_64_pixels():
    model = load_backbone("small")
    assert model.visual.input_resolution == SIZE
    assert len(model.visual.transformer.resblocks) == len(model.transformer.resblocks) == 12
    assert weights.SMALL.stat().st_size <= 30e6
    state = weights.read_state_dict(weights.SMALL)
    assert {value.dtype for value in state.values()} == {torch.float16}


def test_clip_load_knows_it():
    model, transform = load("small", device="cpu")
    image = transform(draw(Subject("red", "plain", "star"), Style(), np.random.default_rng(0)))
    assert model.encode_image(image[None]).shape == (1, 128)


@pytest.mark.parametrize("harm", ["cut", "changed", "gone"])
def test_a_damaged_weights_file_is_noticed_and_says_how_to_restore_it(harm, tmp_path, monkeypatch):
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


def card(name: str) -> list[float]:
    """Zero-shot accuracies (all, base, new) that the model card states for a set."""
    row = re.search(rf"^\| {name} \|(.*)\|$", (ROOT / "clip/small.md").read_text(), re.MULTILINE)
    return [float(cell) for cell in row[1].split("|")[-3:]]


def test_its_zero_shot_accuracy_is_what_the_card_says(drawn, tmp_path):
    stated = card("SmallObjects")
    for half, expected in zip(("all", "base", "new"), stated, strict=True):
        variant = Variant("ZeroshotCLIP", "ZeroshotCLIP", "small")
        study = Study((variant,), ("small_objects",), root=drawn, output=tmp_path / half)
        run = study.run("few_shot", variant, "small_objects", 1, 16, half, "run", "--eval-only")
        train.main(list(run.arguments))
        assert read_results(run.folder)["accuracy"] == pytest.approx(expected, abs=0.7)


def test_the_card_states_every_set():
    for kind in SETS:
        assert len(card(kind.__name__)) == 3


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_settings_for_it(method):
    assert Variant(method, method, "small").config_file.is_file()


# --- pre-training


def test_pre_training_never_sees_what_is_held_out():
    rng = np.random.default_rng(0)
    subjects = [pretrain_small_clip.sample_subject(rng) for _ in range(3000)]
    words = {word for subject in subjects for word in subject.words.split()}
    assert words.isdisjoint({"turquoise", "crescent", "crescents", "zigzag"})
    assert {"red", "striped", "triangle", "three", "forest", "river"} <= words
    assert not any(pretrain_small_clip.held_out(s.colour, s.texture, s.shape) for s in subjects if s.shape)
    assert any(pretrain_small_clip.held_out(s.colour, s.texture, s.shape) for s in SmallSource.subjects)


def test_captions_say_what_is_to_be_seen_but_not_always_all():
    rng = np.random.default_rng(0)
    captions = [pretrain_small_clip.caption(Subject("red", "striped", "triangle"), rng) for _ in range(200)]
    assert all("triangle" in caption for caption in captions)
    assert 0 < sum("red striped" in caption for caption in captions) < 200
    assert len(set(captions)) > 40


@pytest.fixture
def pretrain(tmp_path, monkeypatch, one_thread, ended):
    """`pretrain(folder, *options)`: four steps of a model of one layer in `tmp_path/folder`, and an `Ended`."""
    monkeypatch.setattr(pretrain_small_clip, "LAYERS", 1)
    monkeypatch.setattr(pretrain_small_clip, "UNSEEN", 50)
    few = ["--images", 24, "--batch", 8, "--every", 3, "--steps", 4]

    def pretrain(folder: str, *options):
        argv = [str(option) for option in (*few, "--output", tmp_path / folder, *options)]
        return ended(lambda: train.run(lambda: pretrain_small_clip.main(argv)))

    return pretrain


def test_pre_training_goes_on_where_it_was_cut_off(pretrain, tmp_path, monkeypatch):
    def stop_at_the_end(model, *args, retrieval=pretrain_small_clip.retrieval):
        if (tmp_path / "parts/checkpoint.pt").exists():
            raise KeyboardInterrupt
        return retrieval(model, *args)

    assert pretrain("whole").status == 0
    with monkeypatch.context() as patch:
        patch.setattr(pretrain_small_clip, "retrieval", stop_at_the_end)
        with pytest.raises(KeyboardInterrupt):
            pretrain("parts")
    assert not (tmp_path / "parts/small.safetensors").exists()
    assert pretrain("parts").status == 0
    whole, parts = (weights.read_state_dict(tmp_path / name / "small.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    histories = [json.loads((tmp_path / name / "history.json").read_text()) for name in ("whole", "parts")]
    for history in histories:
        assert [row["step"] for row in history] == [3, 4]
        assert 1 < history[1]["loss"] < 4  # of the last step alone: ln 8 is chance
    assert [row["loss"] for row in histories[0]] == [row["loss"] for row in histories[1]]
    assert (tmp_path / "parts/curves.png").stat().st_size > 1000


def test_pre_training_is_not_gone_on_with_under_other_settings_or_from_damaged_files(pretrain, tmp_path):
    def refused(*options):
        status, _, (error,) = pretrain("run", *options)
        assert (status, error[:7]) == (2, "error: ")
        return error

    assert pretrain("run").status == 0
    assert "--steps 4, this one has 6: choose another --output" in refused("--steps", 6)
    (tmp_path / "run/images_0_24.npy").write_bytes(b"cut")
    assert "images_0_24.npy" in refused()
    (tmp_path / "run/checkpoint.pt").write_bytes(b"cut")
    assert "checkpoint.pt is damaged: delete it to begin again" in refused()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--images", 5], "--batch 8 is more than --images 5"),
        (["--every", 0], "0 is no whole number from 1"),
        (["--steps", "many"], "many is no whole number from 1"),
        (["--lr", "nan"], "nan is no learning rate above 0"),
    ],
)
def test_settings_that_pre_training_cannot_have_are_refused(pretrain, tmp_path, options, words):
    status, _, errors = pretrain("run", *options)
    assert status == 2
    assert words in errors[-1]
    assert not (tmp_path / "run").exists()


# --- the demo


def test_the_demo_ends_with_a_table_a_file_and_a_picture(drawn, tmp_path, monkeypatch, capsys):
    output = tmp_path / "demo"
    root = tmp_path / "data"
    shutil.copytree(drawn, root)
    monkeypatch.setattr(
        "sys.argv",
        ["demo", "--output", str(output), "--root", str(root), "--methods", "CoOp", "--seeds", "1", "--workers", "2"],
    )
    demo.main()
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["dataset"], summary["seeds"], list(summary["methods"])) == (
        "small_objects",
        [1],
        ["ZeroshotCLIP", "CoOp"],
    )
    for row in summary["methods"].values():
        assert row.keys() == {"base", "new", "h", "base_std", "new_std", "h_std", "seconds"}
        assert row["h"] == pytest.approx(2 * row["base"] * row["new"] / (row["base"] + row["new"]))
        assert row["base_std"] == row["new_std"] == row["h_std"] == 0
    assert summary["methods"]["ZeroshotCLIP"]["base"] == pytest.approx(card("SmallObjects")[1], abs=0.7)
    assert summary["methods"]["CoOp"]["base"] > summary["methods"]["ZeroshotCLIP"]["base"] + 5
    with Image.open(output / "summary.png") as picture:
        assert min(picture.size) > 300
    printed = capsys.readouterr().out
    assert "| CoOp |" in printed and "summary.json" in printed
    demo.main()
    again = capsys.readouterr().out
    assert "all 4 runs are done" in again and again.endswith(printed[-200:])


def test_a_demo_whose_runs_fail_says_so(drawn, tmp_path, monkeypatch, capsys):
    image = tmp_path / "data/small_objects/images"
    shutil.copytree(drawn, tmp_path / "data")
    for file in image.glob("*/train_00.png"):
        file.write_bytes(b"no image")
    argv = ["demo", "--output", str(tmp_path / "demo"), "--root", str(tmp_path / "data"), "--methods", "CoOp"]
    monkeypatch.setattr("sys.argv", [*argv, "--seeds", "1", "--workers", "1"])
    with pytest.raises(SystemExit) as caught:
        demo.main()
    assert "1 runs have failed" in str(caught.value.code)
    assert "train_00.png" in capsys.readouterr().err
    assert not (tmp_path / "demo/summary.json").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--workers", "0"], "0 is no whole number from 1"),
        (["--seeds", "-1"], "-1 is no whole number from 0"),
        (["--dataset", "small_lands"], "small_lands"),
        (["--cfg", "smal"], "configs/trainers/CoOp/smal.yaml: give the name of one beside it"),
    ],
)
def test_a_demo_that_cannot_be_is_refused(tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.setattr("sys.argv", ["demo", "--output", str(tmp_path / "demo"), "--root", str(tmp_path), *options])
    with pytest.raises(SystemExit) as caught:
        demo.main()
    assert caught.value.code == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_demo_does_not_take_results_of_other_settings_for_its_own(drawn, tmp_path, monkeypatch):
    argv = ["demo", "--output", str(tmp_path), "--root", str(drawn), "--methods", "CoOp", "--seeds", "1"]
    monkeypatch.setattr("sys.argv", argv)
    run = tmp_path / "base2new/train_base/small_objects/shots_16/CoOp/small/seed1"
    run.mkdir(parents=True)
    (run / "results.json").write_text('{"accuracy": 99}')
    (run / "config.yaml").write_text("OPTIM: {LR: 0.7}\n")
    with pytest.raises(train.SettingError, match=r"OPTIM.LR 0.7, this one has 0.1"):
        demo.main()
    assert not (tmp_path / "summary.json").exists()
