"""What the cells of `benchmarks.real` say."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fit.candidates import ZERO_SHOT

Cells = list[dict[str, Any]]
PLACE = "set", "encoder", "shots", "swapped"


def table(cells: Cells) -> Iterator[str]:
    """The lines."""
    groups: dict[tuple, Cells] = {}
    for one in cells:
        groups.setdefault(tuple(one[key] for key in PLACE), []).append(one)
    yield f"{len(cells)} fits, {len(groups)} cells"
    yield from accuracies(groups)
    yield from regrets(groups)
    yield from certainty([one for one in cells if "estimate" in one])


def accuracies(groups: dict[tuple, Cells]) -> Iterator[str]:
    """A row for each data set, encoder and share of swapped labels."""
    shots = sorted({place[2] for place in groups})
    yield f"| data set | encoder | swapped | zero-shot | {' | '.join(map(str, shots))} |"
    yield "| --- " * (4 + len(shots)) + "|"
    for name, encoder, swapped in dict.fromkeys((*place[:2], place[3]) for place in groups):
        row = []
        zero_shot = 0.0
        for number in shots:
            here = groups.get((name, encoder, number, swapped), [])
            row.append(entry(here) if here else "")
            zero_shot = by_name(here, "singles")[ZERO_SHOT] if here else zero_shot
        yield f"| {name} | {encoder} | {swapped}% | {zero_shot:.1f} | {' | '.join(row)} |"


def entry(cells: Cells) -> str:
    """The mean accuracy, and its distance to the best recipe."""
    rivals = by_name(cells, "recipes")
    fit = mean(cells, lambda one: one["fit"])
    return f"{fit:.1f} ({fit - max(rivals.values()):+.1f})"


def regrets(groups: dict[tuple, Cells]) -> Iterator[str]:
    """How far a fit is from what would have been best, in hindsight on the test images."""
    regret: dict[tuple, float] = {}
    below: dict[tuple, str] = {}
    below_names: dict[tuple, float] = {}
    for place, cells in groups.items():
        rivals = by_name(cells, "recipes")
        singles = by_name(cells, "singles")
        fit = mean(cells, lambda one: one["fit"])
        regret[place] = max([*rivals.values(), *singles.values()]) - fit
        best = max(rivals, key=rivals.__getitem__)
        apart = np.array([one["recipes"][best] - one["fit"] for one in cells])
        error = float(apart.std(ddof=1) / len(apart) ** 0.5) if len(apart) > 1 else 0.0
        if apart.mean() > 1:
            below[place] = f"{apart.mean():.1f} +- {error:.1f} ({best})"
        if singles[ZERO_SHOT] - fit > 1:
            below_names[place] = round(singles[ZERO_SHOT] - fit, 1)
    for swapped in sorted({place[3] for place in groups}):
        here = [value for place, value in regret.items() if place[3] == swapped]
        yield f"{swapped}% swapped: regret mean {np.mean(here):.2f}, most {max(here):.1f}"
    for number in sorted({place[2] for place in groups}):
        here = [value for place, value in regret.items() if place[2:] == (number, 0)]
        if here:
            yield f"{number} images, none swapped: regret mean {np.mean(here):.2f}"
    yield f"more than 1 below the best recipe: {len(below)} of {len(groups)}"
    yield from (f"  {place}: {value}" for place, value in below.items())
    yield f"more than 1 below zero-shot: {below_names}"


def certainty(told: Cells) -> Iterator[str]:
    """How estimates, sets and promised errors keep what they say."""
    for swapped in sorted({one["swapped"] for one in told}):
        here = [one for one in told if one["swapped"] == swapped]
        inside = mean(here, lambda one: 100.0 * (one["low"] <= one["fit"] <= one["high"]))
        bias = mean(here, lambda one: one["estimate"] - one["fit"])
        sets = mean(here, lambda one: one["sets"])
        yield (
            f"{swapped}% swapped: {inside:.1f}% of {len(here)} intervals contain the accuracy; "
            f"estimate - accuracy {bias:+.1f}; sets for 90%: {sets:.1f}"
        )
        found, cleanlab, wrong = (
            sum(one.get(key, 0) for one in here) for key in ("found", "cleanlab", "wrong")
        )
        places = f"{found} of {wrong} swapped labels are among the first 10% to check"
        yield f"  {places}, by cleanlab's order {cleanlab}"
    honest = [one for one in told if not one["swapped"]]
    for error in ("5", "20", "50"):
        kept = [one["max_error"][error] for one in honest if error in one["max_error"]]
        over = sum(wrong > float(error) for _, wrong in kept)
        yield f"--max-error {error}: accepted in {len(kept)} of {len(honest)}, more in {over}"
    for number in sorted({one["shots"] for one in told}):
        seconds = mean([one for one in told if one["shots"] == number], lambda one: one["seconds"])
        yield f"processor seconds with {number} images: {seconds:.1f}"


def by_name(cells: Cells, key: str) -> dict[str, float]:
    """The mean accuracy of each of the recipes, or of the singles that all cells have."""
    names = set.intersection(*(set(one[key]) for one in cells))
    return {name: mean(cells, lambda one, name=name: one[key][name]) for name in sorted(names)}


def mean(cells: Cells, value: Callable[..., float]) -> float:
    return float(np.mean([value(one) for one in cells]))
