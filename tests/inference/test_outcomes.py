"""Pictures of what tests predicted: their numbers, in a study and of a run."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from finished import made_up, predicted
from marks import to_json
from PIL import Image

from inference.inspection import predictions as inspecting
from measures.metrics import of_predictions
from measures.outcomes import Outcome, thumbnail
from measures.predictions import COLUMNS, save

pytestmark = pytest.mark.slow

NAMES = ["lake", "river $\\frac", "road \x1b[31m in a very long street of houses", "wood"]


def made_up_test(seed=1, number=200, right=0.6):
    """The arrays of a test of `number` images, and its results.json."""
    rng = np.random.default_rng(seed)
    label = np.arange(number) % len(NAMES)
    first = np.where(rng.random(number) < right, label, rng.integers(0, len(NAMES), number))
    confidence = rng.uniform(0.3, 1, number).astype(np.float32)
    paths = [f"images/{place}.png" for place in range(number)]
    classes = np.stack([first, (first + 1) % len(NAMES)], axis=1)
    arrays = predicted(label, classes, np.stack([confidence, 1 - confidence], 1), NAMES, paths)
    accuracy = 100 * float(np.mean(first == label))
    results = {"dataset": "Set", "n_test": number, "trainer": "MPL", "classes": "all"}
    return arrays, made_up(accuracy, **results, shots=4, seed=seed)


def write(folder, seed=1):
    arrays, results = made_up_test(seed)
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / "predictions.npz", arrays)
    to_json(folder / "results.json", results)


def test_numbers_are_those_of_the_measures_and_of_a_count():
    arrays, _ = made_up_test()
    label = arrays["label"]
    predicted = arrays["classes"][:, 0]
    confidence = arrays["probabilities"][:, 0]
    found = Outcome(arrays)
    measures = of_predictions(*(arrays[key] for key in COLUMNS))
    count, sure, correct = found.bins
    ece = 100 * np.abs(sure - correct).sum() / count.sum()
    assert ece == pytest.approx(measures["ece"], abs=1e-4)
    missed = (predicted != label)[np.argsort(-confidence)]  # of 200 images
    risks = [100 * missed[: 2 * percent].mean() for percent in range(1, 101)]
    assert found.risks == pytest.approx(risks)
    values = [value for _, value in found.recalls()]
    assert values == sorted(values)
    assert np.mean(values) == pytest.approx(measures["mean_class_accuracy"])
    counts = np.zeros((4, 4), int)
    np.add.at(counts, (label, predicted), 1)
    np.fill_diagonal(counts, 0)
    first, *others = found.pairs()
    most = [first.number, *(pair.number for pair in others)]
    assert most == np.sort(counts, axis=None)[:-6:-1].tolist() and first.images == 50
    shown = [found.name(one) for one in range(4)]
    pair = shown.index(first.label), shown.index(first.predicted)
    assert counts[pair] == first.number
    wrong = np.flatnonzero((label == pair[0]) & (predicted == pair[1]))
    surest = wrong[np.argsort(-confidence[wrong])[:3]]
    assert first.examples == [f"images/{place}.png" for place in surest]


def test_a_run_is_drawn_with_images_below_the_root_alone(tmp_path, command, monkeypatch):
    write(tmp_path / "run")
    (tmp_path / "data/images").mkdir(parents=True)
    for place in range(200):
        Image.new("RGB", (8, 6), (place, 0, 0)).save(tmp_path / f"data/images/{place}.png")

    def inspected(to, *options):
        command.works(inspecting, tmp_path / "run", "--output", tmp_path / to, *options)
        return (tmp_path / to / "predictions.html").read_text()

    page = inspected("out", "--root", tmp_path / "data")
    assert page.count('<img src="data:image/svg+xml;base64,') == 5
    assert "<script" not in page and "\x1b" not in page
    assert len(list((tmp_path / "out").glob("*.png"))) == 5
    root = tmp_path / "data/images"
    assert thumbnail(root, "1.png").size == (8, 6)
    for path in (
        "../images/1.png",
        str(root.parent / "images2/1.png"),
        "none.png",
        "",
        "/etc/passwd",
    ):
        assert thumbnail(root, path) is None
    (tmp_path / "run/config.yaml").write_text("DATASET: {ROOT: ~/data}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert inspected("home") == page
    (tmp_path / "run/config.yaml").write_text("DATASET: 3\n")
    inspected("rootless")
    picture = "reliability.svg"
    assert (tmp_path / "out" / picture).read_text() == (tmp_path / "rootless" / picture).read_text()
    ended = command(inspecting, tmp_path, "--output", tmp_path / "other")
    assert "has no results.json" in ended.error and not (tmp_path / "other").exists()


def test_twenty_thousand_classes_fit_into_memory():
    """They took 23 GB."""
    number = 20_000
    label = np.arange(number) % number
    rng = np.random.default_rng(1)
    arrays = {
        "label": label,
        "classes": rng.integers(0, number, (number, 5)),
        "image": np.array(["a.png"] * number),
    }
    tracemalloc.start()
    arrays["class_names"] = np.array([f"class {place}" for place in range(number)])
    found = Outcome(arrays | {"probabilities": np.full((number, 5), 0.2, np.float32)})
    pictures = [name for name, *_ in inspecting.pictures(found, Path())]
    assert "confusion" in pictures and "accuracy_by_class" in pictures
    assert tracemalloc.get_traced_memory()[1] < 300e6
    tracemalloc.stop()
