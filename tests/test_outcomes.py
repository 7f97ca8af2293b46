"""Pictures of what tests predicted: their numbers, in a study and of a run."""

import tracemalloc
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from finished import study_of
from marks import to_json
from matplotlib import pyplot as plt
from PIL import Image

from common.results import digest_of_rows
from measures.metrics import of_predictions
from measures.outcomes import Outcome, thumbnail
from measures.predictions import COLUMNS, save
from runs import inspecting
from studies import plots
from studies.tables import Summary

pytestmark = pytest.mark.slow

NAMES = ["lake", "river $\\frac", "road \x1b[31m in a very long street of houses", "wood"]


def made_up(seed=1, number=200, right=0.6):
    """The arrays of a test of `number` images, and its results.json."""
    rng = np.random.default_rng(seed)
    label = np.arange(number) % len(NAMES)
    first = np.where(rng.random(number) < right, label, rng.integers(0, len(NAMES), number))
    classes = np.stack([first, (first + 1) % len(NAMES)], axis=1)
    confidence = rng.uniform(0.3, 1, number).astype(np.float32)
    arrays = {
        "label": label,
        "classes": classes,
        "probabilities": np.stack([confidence, 1 - confidence], axis=1),
    }
    arrays |= {
        "log_probability": np.full(number, -1, np.float32),
        "brier": np.full(number, 0.5, np.float32),
    }
    arrays["image"] = np.array([f"images/{place}.png" for place in range(number)])
    arrays |= {
        "class_names": np.array(NAMES),
        "dataset": np.array("Set"),
        "split": np.array("test"),
    }
    rows = zip(
        arrays["image"].tolist(), label.tolist(), [NAMES[each] for each in label], strict=True
    )
    arrays["images_sha256"] = np.array(digest_of_rows(rows))
    accuracy = 100 * float(np.mean(first == label))
    results = {
        "dataset": "Set",
        "n_test": number,
        "accuracy": accuracy,
        "trainer": "MPL",
        "classes": "all",
    }
    return arrays, results | {"shots": 4, "seed": seed, "train_seconds": 2.0, "device": "cpu"}


def write(folder, seed=1):
    arrays, results = made_up(seed)
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / "predictions.npz", arrays)
    to_json(folder / "results.json", results)


def test_numbers_are_those_of_the_measures_and_of_a_count():
    arrays, results = made_up()
    found = Outcome(NAMES)
    found.add(arrays)
    measures = of_predictions(*(arrays[key] for key in COLUMNS))
    count, confidence, correct = found.bins
    assert 100 * np.abs(confidence - correct).sum() / count.sum() == pytest.approx(
        measures["ece"], abs=1e-4
    )
    assert found.risks[0][-1] == pytest.approx(100 - results["accuracy"])
    sure = np.argsort(-arrays["probabilities"][:, 0])
    missed = (arrays["classes"][:, 0] != arrays["label"])[sure]  # of 200 images
    assert found.risks[0] == pytest.approx(
        [100 * missed[: 2 * percent].mean() for percent in range(1, 101)]
    )
    values = [value for _, value in found.recalls()]
    assert values == sorted(values) and np.mean(values) == pytest.approx(
        measures["mean_class_accuracy"]
    )
    counted = {
        (one, other): int(((arrays["label"] == one) & (arrays["classes"][:, 0] == other)).sum())
        for one, other in product(range(4), repeat=2)
        if one != other
    }
    pairs = found.pairs()
    assert [pair.number for pair in pairs] == sorted(counted.values(), reverse=True)[:5]
    shown = [found.name(label) for label in range(4)]
    first = shown.index(pairs[0].label), shown.index(pairs[0].predicted)
    assert counted[first] == pairs[0].number and pairs[0].images == 50
    wrong = (arrays["label"] == first[0]) & (arrays["classes"][:, 0] == first[1])
    surest = np.flatnonzero(wrong)[np.argsort(-arrays["probabilities"][wrong, 0])[:3]]
    assert pairs[0].examples == [f"images/{place}.png" for place in surest]


def test_pictures_of_a_study(tmp_path):
    """The first run has lost its predictions."""
    study = study_of(
        tmp_path / "out", ("ZeroshotCLIP", "CoOp", "MPL"), "base2new", seeds=(1, 2), root=tmp_path
    )
    for run in study.runs():
        write(run.folder, run.seed)
    (study.runs()[0].folder / "predictions.npz").unlink()
    summary = Summary(study, {run: made_up(run.seed)[1] for run in study.runs()})
    titles = [
        ax.get_title()
        for picture in (plots.reliability, plots.risk_coverage)
        for ax in picture(summary).axes
    ]
    assert titles[:3] == [f"{name}\nbase2new" for name in ("ZeroshotCLIP", "CoOp", "MPL")]
    assert titles[3:] == ["base2new, base", "base2new, new"]
    base, new = (
        line
        for line in plots.reliability(summary).axes[2].lines
        if line.get_label() in ("base", "new")
    )
    assert (base.get_marker(), base.get_linestyle()) != (new.get_marker(), new.get_linestyle())
    for picture in (plots.reliability, plots.risk_coverage, plots.accuracy_time, plots.gains):
        picture(summary).canvas.draw()  # names with $ are no formulas
    plt.close("all")


def test_a_run_is_drawn_with_images_below_the_root_alone(tmp_path, command, monkeypatch):
    write(tmp_path / "run")
    (tmp_path / "data/images").mkdir(parents=True)
    for place in range(200):
        Image.new("RGB", (8, 6), (place, 0, 0)).save(tmp_path / f"data/images/{place}.png")
    ended = command(
        inspecting, tmp_path / "run", "--output", tmp_path / "out", "--root", tmp_path / "data"
    )
    assert (ended.status, ended.errors) == (0, [])
    page = (tmp_path / "out/predictions.html").read_text()
    assert (
        page.count('<img src="data:image/svg+xml;base64,') == 5
        and "<script" not in page
        and "\x1b" not in page
    )
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
    command.works(inspecting, tmp_path / "run", "--output", tmp_path / "home")
    assert (tmp_path / "home/predictions.html").read_text() == page
    (tmp_path / "run/config.yaml").write_text("DATASET: 3\n")
    command.works(inspecting, tmp_path / "run", "--output", tmp_path / "rootless")
    first, second = (
        (tmp_path / folder / "reliability.svg").read_bytes() for folder in ("out", "rootless")
    )
    assert first == second
    ended = command(inspecting, tmp_path, "--output", tmp_path / "other")
    assert (
        ended.status == 2
        and "has no results.json" in ended.errors[0]
        and not (tmp_path / "other").exists()
    )


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
    found = Outcome([f"class {place}" for place in range(number)])
    found.add(arrays | {"probabilities": np.full((number, 5), 0.2, np.float32)})
    pictures = [name for name, *_ in inspecting.pictures(found, Path())]
    assert "confusion" in pictures and "accuracy_by_class" in pictures
    assert tracemalloc.get_traced_memory()[1] < 300e6
    tracemalloc.stop()
