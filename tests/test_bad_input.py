"""Bad input gives one line with the fault and the remedy, exit status 2, and leaves nothing behind.

Data and backbones here; settings are in test_bad_settings.py, runs that go wrong on their way in test_runs.py.
"""

import pytest
from drawn import arguments, results, write_eurosat
from PIL import Image

SPLIT = "eurosat/split_zhou_EuroSAT.json"


@pytest.fixture
def root(tmp_path):
    """A dataset to be damaged: 4 classes, 3 / 1 / 2 images each."""
    write_eurosat(tmp_path / "data", ["red", "green field", "blue_lake", "grey"], train=3)
    return tmp_path / "data"


# Data


def test_no_data_folder(refused, tiny, tmp_path):
    refused(arguments(tmp_path / "nowhere", tiny, tmp_path / "out"), tmp_path / "nowhere", "--root (DATA for scripts)")
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
    refused(arguments(root, tiny, tmp_path / "out"), file, "damaged", "python tools/prepare.py eurosat --root")


@pytest.mark.parametrize(("part", "workers"), [("train", 2), ("test", 0)])
def test_unreadable_image_is_named(part, workers, launch, root, tiny, tmp_path):
    image = root / f"eurosat/2750/1/{part}_0.png"
    if workers:
        image.write_bytes(image.read_bytes()[:100])
        fault = f"'{image}' (image file is truncated)"
    else:
        Image.new("RGB", (8, 8)).save(image, "DDS")
        fault = f"'{image}' is damaged or not a JPEG"
    argv = arguments(root, tiny, tmp_path / "out", "DATASET.NUM_SHOTS", -1, "DATALOADER.NUM_WORKERS", workers)
    assert fault in launch(*argv).error
    assert not (tmp_path / "out/results.json").exists()


def test_thin_image_is_refused_by_a_run_and_found_by_prepare(launch, prepare, root, tiny, tmp_path):
    """Decoding it was cheap and resizing it a traceback after the last epoch; `prepare --check` found nothing wrong."""
    image = root / "eurosat/2750/1/test_0.png"
    Image.new("L", (2_000_000, 1)).save(image)
    error = launch(*arguments(root, tiny, tmp_path / "out", "DATASET.NUM_SHOTS", -1)).error
    assert str(image) in error and "has 2,000,000 x 1 pixels" in error
    assert f"1 images are unreadable: {image} (" in prepare("eurosat", "--check").printed


def test_class_with_fewer_images_than_shots_is_used_and_the_folder_is_only_read(launch, root, tiny, tmp_path):
    def state():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in [root, *root.rglob("*")]}

    before = state()
    ended = launch(*arguments(root, tiny, tmp_path / "out", "DATASET.NUM_SHOTS", 4))
    assert 'Class "green field" has 3 of the 4 images asked for: all are used' in ended.printed
    assert results(tmp_path / "out")["shots"] == 4 and state() == before


# Backbones


def test_images_of_another_size_than_the_backbone_reads(refused, eurosat, tiny, tmp_path):
    argv = arguments(eurosat, tiny, tmp_path / "out", "INPUT.SIZE", "(224, 224)")
    refused(argv, "INPUT.SIZE is (224, 224)", f"{tiny} reads (32, 32)")
