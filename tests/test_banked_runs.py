"""BANK: a run of train.py reads the features that `tools/embed.py` wrote, and no image."""

import os
import shutil

import numpy as np
import pytest
from marks import parquet_library, thorough_but

from common.results import read_results
from inference import bank, embed
from runs import calibrate

parquet = parquet_library().parquet
pytestmark = pytest.mark.slow


@pytest.fixture
def data(eurosat, tmp_path):
    """A copy of the small EuroSAT, as tests change it."""
    return shutil.copytree(eurosat, tmp_path / "data")


@pytest.fixture
def banked(command, deep, data, tmp_path):
    """`banked(option, ...)`: a bank of its images by a random CLIP."""

    def banked(*words, to="bank", source=data):
        how = "--backbone", deep, "--to", tmp_path / to
        done = command(embed, source / "eurosat/2750", *how, *words)
        assert done.status in (0, 1), done.errors
        return tmp_path / to

    return banked


@pytest.fixture
def line(argv, data, deep):
    """`line(METHOD, KEY, VALUE, ...)`: a command line that reads images as the bank does."""

    def line(method, *pairs, root=data, **others):
        views = (
            () if method in ("CoOp", "StatA") else (f"TRAINER.{method.upper()}.AUGMENT_EPOCH", 0)
        )
        once = ("OPTIM.MAX_EPOCH", 1) if method in ("GDA", "ProLIP") else ()
        own = *views, *once, "INPUT.EXIF_ORIENTATION", True, "TEST.SAVE_LOGITS", True
        return argv(method, *own, *pairs, root=root, backbone=deep, **others)

    return line


@pytest.fixture
def refuses(refused, line, tmp_path):
    """`refuses(words, METHOD, KEY, VALUE, ...)`: a run with this bank is refused."""

    def refuses(words, method, *pairs, **others):
        refused(line(method, "BANK", tmp_path / "bank", *pairs, **others), words)

    return refuses


def blank(folder):
    """Files that are no images, as old and as large as these were."""
    for number, file in enumerate(folder.rglob("*.png")):
        before = file.stat()
        file.write_bytes(str(number).encode().ljust(before.st_size))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def results(folder):
    known = read_results(folder)
    return {key: getattr(known, key) for key in ("accuracy", "macro_f1", "n_test", "epochs")}


def logits(folder):
    with np.load(folder / "predictions.npz") as arrays:
        return arrays["logits"].astype(float)


CASES = {
    "GDA": ("GDA", ["TEST.CALIBRATE", True]),
    "batches": ("TaskRes", ["TEST.FINAL_MODEL", "best_val"]),
    "before the projection": ("ProLIP", ["TRAINER.PROLIP.STEPS", 3]),
    "over a run": ("StatA", ["TRAINER.STATA.OVER"]),
}


@pytest.mark.parametrize("name", thorough_but(("before the projection", "over a run"), CASES))
def test_a_run_of_a_bank_is_that_of_its_images(
    name, banked, launch, line, data, finished, command, tmp_path
):
    method, pairs = CASES[name]
    pairs = [*pairs, finished("CoOp", "all")] if pairs[-1:] == ["TRAINER.STATA.OVER"] else pairs
    folder = banked("--precision", "float32", "--look")
    launch.works(*line(method, *pairs, output="images"))
    blank(data)
    launch.works(*line(method, *pairs, "BANK", folder, output="bank_run"))
    first, second = tmp_path / "images", tmp_path / "bank_run"
    assert results(second) == results(first)
    np.testing.assert_allclose(logits(second), logits(first), atol=2e-3)
    if method != "StatA":
        with np.load(first / "seen.npz") as seen, np.load(second / "seen.npz") as found:
            assert all(np.array_equal(seen[name], found[name]) for name in seen.files)
    shutil.rmtree(data / "eurosat/2750")
    (data / "eurosat/2750").mkdir()
    launch.works(*line(method, *pairs, "BANK", folder, output="gone"))
    assert results(tmp_path / "gone") == results(first)
    if method == "GDA":
        assert "are missing, the first" in command(calibrate, tmp_path / "gone").error


def test_a_run_resumes_and_is_tested_with_a_bank(banked, launch, line, data, tmp_path):
    folder = banked()  # in float16, without looks
    words = "TaskRes", "TRAIN.CHECKPOINT_FREQ", 1
    launch.works(*line(*words))
    run = tmp_path / "out"
    first = logits(run)
    blank(data)
    (run / "results.json").unlink()
    done = launch.works(*line(*words, "BANK", folder))
    assert "will resume" in done.printed
    np.testing.assert_allclose(logits(run), first, atol=0.1)
    done = launch.works(*line(*words, "BANK", folder, output="new"))
    assert "was written without --look" in done.printed
    assert not (tmp_path / "new/seen.npz").exists()
    tests = "--eval-only", "--model-dir", run
    done = launch.works(*line("TaskRes", "BANK", folder, output="test", options=tests))
    np.testing.assert_allclose(logits(tmp_path / "test"), first, atol=0.1)


def test_images_are_found_by_their_checksums(banked, launch, line, refuses, data, tmp_path):
    folder = banked("--precision", "float32")
    launch.works(*line("GDA", output="images"))
    other = shutil.copytree(data, tmp_path / "other", copy_function=shutil.copyfile)
    shutil.rmtree(data)
    launch.works(*line("GDA", "BANK", folder, root=other, output="moved"))
    assert results(tmp_path / "moved") == results(tmp_path / "images")
    links = tmp_path / "links/eurosat"
    links.mkdir(parents=True)
    (links / "2750").symlink_to(other / "eurosat/2750")
    shutil.copy(next((other / "eurosat").glob("*.json")), links)
    launch.works(*line("GDA", "BANK", folder, root=links.parent, output="linked"))
    changed = next((other / "eurosat/2750").rglob("*.png"))
    changed.write_bytes(b"another")
    refuses(
        f"lacks 1 of 48 images, or they have changed since, such as {changed}", "GDA", root=other
    )


def test_a_bank_needs_no_other_images_than_the_run_reads(
    banked, launch, line, refuses, data, tmp_path
):
    launch.works(*line("TaskRes", output="run"))
    for file in (data / "eurosat/2750").rglob("t*.png"):  # of training and of the test
        file.unlink()
    folder = banked()
    pairs = "BANK", folder, "TEST.SPLIT", "val"
    launch.works(*line("StatA", *pairs, output="val"))
    tests = "--eval-only", "--model-dir", tmp_path / "run"
    launch.works(*line("TaskRes", *pairs, output="test", options=tests))
    refuses("lacks 24 of 24 images", "StatA")


def test_what_a_bank_does_not_have_is_refused(banked, refuses, finished, tiny, data, tmp_path):
    refuses("which is not a bank", "CoOp")
    damaged = next((data / "eurosat/2750").rglob("*.png"))
    damaged.write_bytes(b"no image")
    banked()
    refuses(f"has no feature of {damaged}", "GDA")
    refuses("and CoOp learns from these", "CoOp")
    refuses("AUGMENT_EPOCH is 3: set it to 0", "GDA", "TRAINER.GDA.AUGMENT_EPOCH", 3)
    refuses("--ood and TEST.CORRUPTION read these", "GDA", "TEST.OOD", ["dtd"])
    refuses("(INPUT: EXIF_ORIENTATION True, not False)", "GDA", "INPUT.EXIF_ORIENTATION", False)
    over = "TRAINER.STATA.OVER", finished("MPL", "all")
    refuses("StatA has an image tower of its own", "StatA", *over)
    of_run = "TRAINER.GDA.FEATURES_OF", finished("CoOp", "all")
    refuses("GDA has an image tower of its own", "GDA", *of_run)
    refuses("of other weights than this run", "GDA", "MODEL.BACKBONE.NAME", tiny)
    (tmp_path / "bank/00000.parquet").rename(tmp_path / "bank/00001.parquet")
    refuses("lacks files", "GDA")
    (tmp_path / "bank" / bank.RECORD).write_text("{")
    refuses("_embed.json", "GDA")
