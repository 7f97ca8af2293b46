"""Two methods compared by the predictions of their runs: differences, how sure they are, and what
could be seen.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import UsageError
from common.files import RESULTS_FILE
from common.names import printable
from common.results import RunResult, read_results
from common.start import Parser
from configs.methods import methods
from measures.predictions import read_predictions
from measures.results import selection_mark

LEVEL = 0.95
POWER = 0.8
RESAMPLES = 2000
# Of the seeds of one method
IN_COMMON = ("trainer", "method", "dataset", "classes", "shots", "backbone", "weights_sha256")


@dataclass(frozen=True)
class Compared:
    """The runs of one method."""

    results: dict[int, RunResult]  # of each run, by seed
    correct: NDArray[np.bool_]  # (seeds, images), whether each prediction is right; seeds ascend
    images: tuple  # the checksum of the list of images, and the names of the classes
    folder: Path

    def for_seeds_of(self, other: "Compared") -> "Compared":
        """The same, with the only run of a method that does not depend on the seed as that of each
        seed of `other`.
        """
        run, *more = self.results.values()
        method = methods().get(run.trainer)
        if more or method is None or method.seeded:
            return self
        correct = np.repeat(self.correct, len(other.results), axis=0)
        return replace(self, results=dict.fromkeys(other.results, run), correct=correct)


def read_runs(folder: Path) -> Compared:
    """The run in a folder, or the runs in its folders (seed1, seed2, ...).

    Raises UsageError if there is none, one has no predictions, or they are of different images or
    seeds.
    """
    folders = [file.parent for file in sorted(folder.glob(f"*/{RESULTS_FILE}"))]
    if (folder / RESULTS_FILE).is_file():
        folders = [folder]
    tests = [(run, read_predictions(place)) for place in folders if (run := read_results(place))]
    if not tests:
        remedy = "give the output folder of a run, or of its seeds"
        raise UsageError(f"there is no finished run in {folder}", remedy)
    tests.sort(key=lambda test: test[0].seed)
    images = [(str(arrays["images_sha256"]), tuple(arrays["class_names"])) for _, arrays in tests]
    fault = difference_of([run for run, _ in tests], images, folder)
    if fault:
        raise UsageError(fault, "give the runs of one method on one dataset", folder)
    correct = np.stack([arrays["classes"][:, 0] == arrays["label"] for _, arrays in tests])
    return Compared({run.seed: run for run, _ in tests}, correct, images[0], folder)


def difference_of(runs: list[RunResult], images: list[tuple], folder: Path) -> str:
    """Why runs are not those of one method with other seeds; empty if they are."""
    if len({run.seed for run in runs}) < len(runs):
        return f"{folder} has a seed twice"
    if len(set(images)) > 1:
        return f"{folder} has tests of different images or classes"
    for key in IN_COMMON:
        several = sorted({str(getattr(run, key)) for run in runs})
        if len(several) > 1:
            names = ", ".join(map(printable, several))
            return f"the runs in {folder} differ in {key}: {names}"
    return ""


def paired(one: Compared, other: Compared) -> tuple[list[int], NDArray[np.integer[Any]]]:
    """The seeds that both have, and (seeds, images): 1 where only the first is right, -1 where only
    the second is.

    Raises UsageError if they have no seed in common, or were tested on different images.
    """
    if one.images != other.images:
        fault = "classes" if one.images[0] == other.images[0] else "images"
        raise UsageError(
            f"the runs were tested on different {fault}",
            "give runs on one dataset and one part of it",
        )
    if one.correct.shape[1] < 2:
        raise UsageError("the runs were tested on one image", "give runs with more of them")
    seeds = sorted(one.results.keys() & other.results.keys())
    if not seeds:
        raise UsageError("the runs have no seed in common", "give runs with the same seeds")
    ours, theirs = (method.correct[np.isin(list(method.results), seeds)] for method in (one, other))
    return seeds, ours.astype(int) - theirs.astype(int)


def bootstrap_interval(differences: NDArray[Any]) -> tuple[float, float]:
    """The interval of the mean difference, in points, from resampling seeds and images, each with
    replacement.

    `differences`, (seeds, images), are from `paired`. With one seed only the images are resampled.
    """
    from scipy.stats import bootstrap  # slow to import

    rng = np.random.default_rng(0)
    options: dict[str, Any] = {"n_resamples": RESAMPLES, "confidence_level": LEVEL}
    options |= {"method": "percentile", "random_state": rng}
    if len(differences) == 1:
        resampled = bootstrap((differences[0],), np.mean, batch=100, **options)
    else:
        ranges = tuple(np.arange(size) for size in differences.shape)

        def mean(seeds: Any, images: Any) -> float:
            return float(differences[np.ix_(seeds, images)].mean())

        resampled = bootstrap(ranges, mean, vectorized=False, **options)
    low, high = resampled.confidence_interval
    return 100 * float(low), 100 * float(high)


def mcnemar(difference: NDArray[Any]) -> tuple[int, int, float]:
    """McNemar's exact test of two runs, from a row of `paired` (images,).

    Returns how many images only the first gets right, how many only the second, and the two-sided
    p.
    """
    from scipy.stats import binomtest

    ours = int((difference > 0).sum())
    theirs = int((difference < 0).sum())
    return ours, theirs, float(binomtest(ours, ours + theirs).pvalue) if ours + theirs else 1.0


def seed_interval(differences: Sequence[float]) -> tuple[float, float]:
    """The t-interval of the mean of paired differences, one for each seed; NaN for fewer than
    two.
    """
    from scipy.stats import t

    number = len(differences)
    if number < 2:
        return math.nan, math.nan
    half = t.ppf((1 + LEVEL) / 2, number - 1) * np.std(differences, ddof=1) / math.sqrt(number)
    return float(np.mean(differences) - half), float(np.mean(differences) + half)


def smallest_difference(differences: Sequence[float]) -> float:
    """The smallest true difference that a paired t-test (5%) would find with probability 0.8, for
    these seeds.

    Only the standard deviation of the differences (one for each seed) counts. The result is NaN for
    fewer than two differences, and if all are equal up to rounding errors.
    """
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    number = len(differences)
    if number < 2 or np.ptp(differences) < 1e-9:
        return math.nan
    deviation = float(np.std(differences, ddof=1))
    critical = t.ppf((1 + LEVEL) / 2, number - 1)

    # `shift` is in standard errors. scipy returns NaN for the smallest probabilities.
    def lacking(shift: float) -> float:
        wrong_side = np.nan_to_num(nct.cdf(-critical, number - 1, shift))
        return float(nct.sf(critical, number - 1, shift) + wrong_side) - POWER

    upper = 1.0
    while lacking(upper) < 0:
        upper *= 2
    return float(brentq(lacking, 0, upper)) * deviation / math.sqrt(number)


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign; zero, also rounded, has a plus."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def report_lines(one: Compared, other: Compared) -> list[str]:
    """The comparison in sentences."""
    one = one.for_seeds_of(other)
    other = other.for_seeds_of(one)
    seeds, differences = paired(one, other)
    names = [method.results[seeds[0]].name for method in (one, other)]
    if names[0] == names[1]:
        names = [f"{names[0]} {printable(method.folder)}" for method in (one, other)]
    lines = [
        f"{mean_accuracy(names[0], one, seeds)}, {mean_accuracy(names[1], other, seeds)} "
        f"({place_of(one.results[seeds[0]], seeds, differences.shape[1])})"
    ]
    of_difference = list(lines_of_difference(differences))
    lines.append(of_difference[0])
    for name, method in zip(names, (one, other), strict=True):
        more = method.results.keys() - seeds
        if more:
            lines.append(f"{name} has seeds that the other lacks: {', '.join(map(str, more))}")
    for seed, difference in zip(seeds, differences, strict=True):
        lines.append(f"Seed {seed}: {of_one_seed(names[0], names[1], difference)}")
    return lines + of_difference[1:]


def place_of(run: RunResult, seeds: list[int], images: int) -> str:
    """The compared runs, in words."""
    several = f"{len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
    return f"{run.dataset}, {run.classes} classes, {images:,} images, {several}"


def lines_of_difference(differences: NDArray[Any]) -> Iterator[str]:
    """The mean difference with its intervals, and whether they include 0."""
    by_seed = 100 * differences.mean(axis=1)
    intervals = [bootstrap_interval(differences)]
    over = "seeds and images" if len(by_seed) > 1 else "images: of this seed only"
    interval = f"95% interval {between(intervals[0])} (bootstrap over {over})"
    yield f"Difference: {signed(by_seed.mean())} points; {interval}"
    if len(by_seed) > 1:
        intervals.append(seed_interval(list(by_seed)))
        yield f"Over other seeds: 95% interval {between(intervals[1])} (paired t)"
        yield smallest_shown(by_seed)
    including = sum(low <= 0 <= high for low, high in intervals)
    if including:
        which = "the interval includes" if len(intervals) == 1 else "both intervals include"
        if including < len(intervals):
            which = "one of the two intervals includes"
        yield f"These runs do not show which of the two is better: {which} 0."


def between(interval: tuple[float, float], digits: int = 2) -> str:
    return f"{signed(interval[0], digits)} to {signed(interval[1], digits)}"


def mean_accuracy(name: str, method: Compared, seeds: list[int]) -> str:
    """The mean accuracy over these seeds, with the mark if one of the runs has it."""
    runs = [method.results[seed] for seed in seeds]
    mean = np.mean([run.accuracy for run in runs])
    return f"{name} {mean:.2f}%{max(map(selection_mark, runs))}"


def of_one_seed(name: str, other: str, difference: NDArray[Any]) -> str:
    """On how many images only one of the two is right."""
    ours, theirs, p = mcnemar(difference)
    only = f"{ours} image{'s' * (ours != 1)} only {name} gets right, {theirs} only {other}"
    return f"{only} (McNemar's exact test: p = {p:.3g})"


def smallest_shown(by_seed: NDArray[Any]) -> str:
    """The smallest difference that this number of seeds can show."""
    least = smallest_difference(list(by_seed))
    if math.isnan(least):
        return "All seeds have the same difference"
    shown = f"The smallest difference that {len(by_seed)} such seeds can show"
    shown += f" on these images: {least:.2f} points"
    return f"{shown} (power {POWER})"


def main(argv: list[str] | None = None) -> None:
    """The command `python tools/compare.py ONE OTHER ...`."""
    text = (
        "Compare the first method with each other one, by the predictions of their runs on the "
        "same images."
    )
    parser = Parser(description=text)
    text = "output folder of a run, or a folder with those of several seeds"
    parser.add_argument("runs", type=Path, nargs="+", metavar="FOLDER", help=text)
    args = parser.parse_args(argv)
    if len(args.runs) < 2:
        raise UsageError("there is nothing to compare with", "give two folders or more")
    one, *others = map(read_runs, args.runs)
    print("\n\n".join("\n".join(report_lines(one, other)) for other in others))
