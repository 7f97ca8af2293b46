"""Two methods compared by the predictions of their runs."""

import math

import numpy as np
import pytest
from finished import choice, predicted
from marks import of_json, to_json

from measures.predictions import save
from studies import compare
from studies.compare import bootstrap_interval, seed_interval, smallest_difference


def write_run(
    folder, correct, method="MPL", seed=1, names=("a", "b"), images="old", test_images=0, **facts
):
    """A finished run of two classes; label 0 is right."""
    correct = np.asarray(correct)
    number = len(correct)
    half = np.full((number, 2), 0.5, dtype=np.float32)
    folder.mkdir(parents=True)
    paths = [f"{images}/{i}.png" for i in range(number)]
    classes = np.stack([1 - correct, correct], axis=1)
    arrays = predicted(np.zeros(number, dtype=int), classes, half, names, paths)
    save(folder / "predictions.npz", arrays)
    run = {"trainer": method, "dataset": "Set", "seed": seed, "classes": "all", "shots": 4}
    run |= {"n_test": number, "accuracy": 100 * float(correct.mean())}
    run |= {"data_use": {"choose": [choice(test_images)]}} | facts
    to_json(folder / "results.json", run)


@pytest.fixture
def runs(tmp_path):
    """Three seeds of two methods, 200 images: the first is right on more of them."""
    rng = np.random.default_rng(1)
    right = {}
    hard = rng.random(200)
    for method, level in (("MPL", 0.8), ("CoOp", 0.6)):
        right[method] = [(hard + 0.2 * rng.normal(size=200) < level).astype(int) for _ in range(3)]
        for seed, correct in enumerate(right[method], start=1):
            write_run(tmp_path / method / f"seed{seed}", correct, method, seed)
    return tmp_path, right


def test_sentences_have_the_numbers_of_an_independent_computation(runs, command):
    from scipy import stats

    folder, right = runs

    def compared(one, other):
        return command(compare, folder / one, folder / other).printed

    printed = compared("MPL", "CoOp")
    ours, theirs = (np.array(right[name]) for name in ("MPL", "CoOp"))
    by_seed = 100 * (ours - theirs).mean(axis=1)
    assert f"MPL {100 * ours.mean():.2f}%, CoOp {100 * theirs.mean():.2f}% (Set" in printed
    assert f"Difference: {by_seed.mean():+.2f} points" in printed
    for seed, difference in enumerate(ours - theirs, start=1):
        mine, other = (int((difference == sign).sum()) for sign in (1, -1))
        assert f"Seed {seed}: {mine} images only MPL gets right, {other} only CoOp" in printed
        assert f"p = {stats.binomtest(mine, mine + other).pvalue:.3g}" in printed
    low, high = stats.ttest_1samp(by_seed, 0).confidence_interval(0.95)
    assert f"95% interval {low:+.2f} to {high:+.2f} (paired t)" in printed
    least = smallest_difference(list(by_seed))
    assert f"that 3 such seeds can show on these images: {least:.2f} points" in printed
    assert "do not show which" not in printed
    one = compared("MPL/seed1", "CoOp/seed1")
    assert f"Difference: {by_seed[0]:+.2f} points" in one and "of this seed only" in one
    assert "has seeds that the other lacks" not in printed + one
    assert "MPL has seeds that the other lacks: 2, 3\n" in compared("MPL", "CoOp/seed1")
    same = compared("MPL", "MPL")
    assert "Difference: +0.00 points; 95% interval +0.00 to +0.00" in same
    assert "which of the two is better: both intervals include 0." in same and "p = 1)" in same


def test_zero_shot_run_is_compared_with_every_seed(runs, command):
    folder, right = runs
    write_run(folder / "zero-shot", right["CoOp"][0], "ZeroshotCLIP", seed=-1)
    difference = 100 * (np.array(right["MPL"]) - right["CoOp"][0]).mean()
    for order, sign in (("MPL", "zero-shot"), 1), (("zero-shot", "MPL"), -1):
        printed = command(compare, *(folder / name for name in order)).printed
        assert f"Difference: {sign * difference:+.2f} points" in printed and "3 seeds" in printed
    write_run(folder / "no seed", right["CoOp"][0], "CoOp", seed=-1)
    assert "no seed in common" in command(compare, folder / "MPL", folder / "no seed").error
    assert "(Set, all" in command(compare, folder / "zero-shot", folder / "no seed").printed


def test_bootstrap_resamples_seeds_and_images():
    rng = np.random.default_rng(2)
    images = rng.choice([-1, 0, 1], p=[0.1, 0.7, 0.2], size=(1, 2000))
    low, high = bootstrap_interval(images)
    error = 100 * images.std() / math.sqrt(2000)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    steady = np.repeat(images, 5, axis=0)  # seeds that do not differ
    assert np.subtract(*bootstrap_interval(steady)[::-1]) == pytest.approx(high - low, rel=0.1)
    shifted = np.stack(
        [np.where(rng.random(2000) < share, 1, 0) for share in (0.0, 0.1, 0.2, 0.3, 0.4)]
    )
    wide = bootstrap_interval(shifted)
    expected = 1.96 * 100 * np.std([0.0, 0.1, 0.2, 0.3, 0.4]) / math.sqrt(5)
    assert (wide[1] - wide[0]) / 2 == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("number", [3, 10])
def test_smallest_difference_is_found_four_times_in_five(number):
    from scipy import stats

    rng = np.random.default_rng(number)
    unit = rng.normal(size=number)
    unit = (unit - unit.mean()) / unit.std(ddof=1)
    least = smallest_difference(list(2.0 * unit + 7))
    found = stats.ttest_1samp(rng.normal(least, 2.0, (20_000, number)), 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.015)
    assert smallest_difference(list(4.0 * unit)) == pytest.approx(2 * least)


def test_too_few_seeds_for_a_conclusion():
    unknown = *seed_interval([1.0]), smallest_difference([1.0]), smallest_difference([0.1] * 3)
    assert np.isnan(unknown).all()


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"images": "new"}, "the runs were tested on different images: give runs on one dataset"),
        ({"names": ("a", "c")}, "the runs were tested on different classes"),
        ({"seed": 9}, "the runs have no seed in common"),
    ],
)
def test_incomparable_runs_are_refused(other, words, runs, command):
    folder, right = runs
    write_run(folder / "other", right["CoOp"][0], **other)
    assert words in command(compare, folder / "MPL", folder / "other").error


@pytest.mark.parametrize(
    ("key", "value"), [("trainer", "CoOp"), ("backbone", "RN50"), ("shots", 16)]
)
def test_runs_with_different_settings_are_not_one_method(key, value, runs, command):
    folder, _ = runs
    file = folder / "MPL/seed3/results.json"
    to_json(file, of_json(file) | {key: value})
    assert (
        f"{folder}/MPL differ in {key}: " in command(compare, folder / "MPL", folder / "CoOp").error
    )


def test_a_difference_rounded_to_zero_has_a_plus():
    assert {compare.signed(value) for value in (-0.0, -0.004, 0.004)} == {"+0.00"}
    assert compare.signed(-0.006) == "-0.01"
