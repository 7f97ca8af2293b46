"""predictions.npz: what a test predicted, from which an independent computation gets the numbers of
results.json.
"""

import math
import tracemalloc
import zipfile
from functools import partial

import numpy as np
import pytest
import torch
from drawn import results
from finished import predicted
from marks import of_json, one_line
from scipy.special import softmax
from sklearn.metrics import f1_score

from common.arrays import read_arrays
from common.results import digest_of_rows
from common.start import ROOT
from measures import predictions
from measures.metrics import of_predictions
from measures.predictions import PREDICTIONS_FILE, read_predictions, save
from train import main as train

pytestmark = pytest.mark.slow

NAMES = ["red", "green field", "blue_lake", "grey", "white snow", "black"]


@pytest.fixture
def tested(run):
    """`tested(KEY, VALUE, ...)` -> the folder of a run of zero-shot CLIP."""
    return lambda *overrides, name="out": run(name, *overrides, trainer="ZeroshotCLIP")


COLUMNS = ("label", "classes", "probabilities", "log_probability", "brier")


def differs(run, found):
    """Which measures of results.json are not those of the predictions."""
    labels = found["label"]
    predicted = found["classes"][:, 0]
    accuracy = 100 * (predicted == labels).mean()
    f1 = f1_score(labels, predicted, labels=sorted(set(labels)), average="macro", zero_division=0)
    of_all = of_predictions(*(found[key] for key in COLUMNS))
    of_all |= {"accuracy": accuracy, "error_rate": 100 - accuracy, "macro_f1": 100 * f1}
    return [key for key, value in of_all.items() if run[key] != pytest.approx(value, abs=1e-6)]


def arrays_of(folder):
    with np.load(folder / PREDICTIONS_FILE) as arrays:
        return dict(arrays)


def test_numbers_of_results_are_computed_from_the_predictions(drawn, tmp_path):
    """On the demo's synthetic set, with the small CLIP."""
    configs = ROOT / "configs"
    argv = ["--root", drawn, "--output-dir", tmp_path, "--backbone", "small", "--quiet"]
    argv += ["--trainer", "ZeroshotCLIP", "--config-file", configs / "trainers/CoOp/small.yaml"]
    argv += ["--dataset-config-file", configs / "datasets/small_objects.yaml"]
    train([*map(str, argv)])
    run = results(tmp_path)
    found = arrays_of(tmp_path)
    assert differs(run, found) == []
    assert 20 < run["accuracy"] < 95 and run["accuracy"] < run["top5_accuracy"] and run["ece"] > 0.1
    found["classes"][7, 0] = (found["classes"][7, 0] + 1) % len(found["class_names"])
    assert {"accuracy", "macro_f1"} <= set(differs(run, found))


def test_columns_are_those_of_the_images_and_their_logits(tested, eurosat):
    folder = tested("TEST.SAVE_LOGITS", True)
    run = results(folder)
    found = arrays_of(folder)
    assert differs(run, found) == []
    log = (folder / "log.txt").read_text()
    assert f"* ece: {run['ece']:.1f}%" in log and f"* nll: {run['nll']:.4f}" in log
    split = of_json(eurosat / "eurosat/split_zhou_EuroSAT.json")["test"]
    assert found["image"].tolist() == [f"eurosat/2750/{path}" for path, *_ in split]
    assert found["label"].tolist() == [label for _, label, _ in split]
    assert found["class_names"].tolist() == NAMES
    assert (str(found["dataset"]), str(found["split"])) == ("EuroSAT", "test")
    assert str(found["images_sha256"]) == run["data_use"]["test"]["sha256"]
    logits = found["logits"].astype(float)
    p = softmax(logits, axis=1)
    of_label = p[np.arange(len(p)), found["label"]]
    of_classes = np.take_along_axis(p, found["classes"].astype(int), 1)
    brier = ((p - np.eye(len(NAMES))[found["label"]]) ** 2).sum(axis=1)
    assert of_classes == pytest.approx(found["probabilities"], abs=1e-6)
    assert np.log(of_label) == pytest.approx(found["log_probability"], rel=1e-5, abs=1e-6)
    assert brier == pytest.approx(found["brier"], abs=1e-6)
    with_entry(folder / PREDICTIONS_FILE, "logits.npy", b"damaged")  # readers do not load them
    assert "logits" not in read_predictions(folder)


def test_first_class_agrees_with_accuracy_when_classes_tie():
    logits = torch.tensor(
        [[1.0, 1.0, 0.0], [0.0, 2.0, 2.0], [3.0, 3.0, 3.0], [5.0, -math.inf, -math.inf]]
    )
    found = predictions.predictions_of(logits, torch.tensor([0, 2, 1, 0]))
    assert found["classes"][:, 0].tolist() == logits.argmax(dim=1).tolist()
    assert [sorted(row) for row in found["classes"].tolist()] == [[0, 1, 2]] * 4


def changed(file, **arrays):
    save(file, arrays_of(file.parent) | arrays)


def with_entry(file, name, content):
    with zipfile.ZipFile(file) as archive:
        entries = {each: archive.read(each) for each in archive.namelist()} | {name: content}
    with zipfile.ZipFile(file, "w") as archive:
        for each, written in entries.items():
            archive.writestr(each, written)


def npy(header):
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def header(kind, shape):
    return (
        f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode()
        + b"\n"
    )


DAMAGES = [
    lambda file: with_entry(file, "dataset.npy", npy(header("<U1", "()")) + b"\xff\xff\xff\x7f"),
    lambda file: file.write_bytes(file.read_bytes()[:-100]),
    lambda file: file.write_bytes(b"no archive"),
    lambda file: with_entry(file, "label.npy", npy(b"{'descr': '|O'}\n")),
    # Memory is not taken
    lambda file: with_entry(file, "label.npy", npy(header("<f8", "(1000000000000,)"))),
    lambda file: changed(file, image=arrays_of(file.parent)["image"][::-1]),
    lambda file: changed(file, class_names=arrays_of(file.parent)["class_names"][::-1]),
]
ARRAYS = [
    {"classes": np.full((24, 5), 6)},
    {"classes": np.zeros((24, 5))},
    {"label": np.zeros(23, dtype=int)},
    {"brier": np.zeros((24, 2))},
    {"brier": np.full(24, math.nan)},
    {"log_probability": np.full(24, 0.1)},
    {"classes": np.zeros((24, 0), int), "probabilities": np.zeros((24, 0))},
    {"probabilities": np.full((24, 5), np.nan)},
    {"probabilities": np.full((24, 5), 2.0)},
    {"images_sha256": np.array("0" * 64)},
]


def test_damaged_files_are_named_in_one_line(tested):
    folder = tested()
    content = (folder / PREDICTIONS_FILE).read_bytes()
    for damage in (*DAMAGES, *(partial(changed, **arrays) for arrays in ARRAYS)):
        (folder / PREDICTIONS_FILE).write_bytes(content)
        assert len(read_predictions(folder)["label"]) == 24
        damage(folder / PREDICTIONS_FILE)
        with one_line("predictions.npz is damaged: delete it"):
            read_predictions(folder)


def test_missing_predictions_and_those_of_another_test_are_named(tested):
    folder = tested()
    found = read_predictions(folder)
    images = found["image"][::-1]
    label = found["label"]
    names = found["class_names"]
    rows = zip(images.tolist(), label.tolist(), names[label].tolist(), strict=True)
    classes = found["classes"].copy()
    classes[3, 0] = (label[3] + 1) % len(NAMES) if classes[3, 0] == label[3] else label[3]
    for other in (
        {"classes": classes},
        {"image": images, "images_sha256": np.array(digest_of_rows(rows))},
    ):
        save(folder / PREDICTIONS_FILE, found | other)
        with one_line("is not of the run in results.json"):
            read_predictions(folder)
    (folder / PREDICTIONS_FILE).unlink()
    for place, missing in ((folder, PREDICTIONS_FILE), (folder / "nowhere", "results.json")):
        with one_line(f"has no {missing}"):
            read_predictions(place)


def test_too_many_logits_are_refused_before_a_test(refused, argv, monkeypatch):
    monkeypatch.setattr("runs.predictions.LARGEST", 4 * 24 * 6 - 1)
    line = argv("ZeroshotCLIP", "TEST.SAVE_LOGITS", True)
    refused(line, "TEST.SAVE_LOGITS would write 24 x 6 logits")


def test_a_long_class_name_is_in_memory_once(tmp_path):
    """It was there for each image: 9.7 kB took 9.8 GB."""
    zeros = np.zeros((2000, 1), int)
    arrays = predicted(zeros[:, 0], zeros, zeros.astype("f4"), ["x" * 100_000], [""] * 2000)
    file = tmp_path / PREDICTIONS_FILE
    save(file, arrays)
    tracemalloc.start()
    names = predictions.COLUMNS | predictions.WORDS
    predictions.check_predictions(read_arrays(file, names, predictions.LARGEST_READ))
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
