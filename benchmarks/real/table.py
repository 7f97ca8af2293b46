"""Tables of the cells of `benchmarks.real`."""

from collections.abc import Callable, Iterator

import numpy as np
from scipy.stats import sem

from benchmarks.fits import ERRORS, Record, contained
from fit.candidates import ZERO_SHOT

Cells = list[Record]
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
    fit = fit_of(cells)
    return f"{fit:.1f} ({fit - max(rivals.values()):+.1f})"


def regrets(groups: dict[tuple, Cells]) -> Iterator[str]:
    """How far a fit is from what would have been best, in hindsight on the test images."""
    regret = {place: regret_of(cells) for place, cells in groups.items()}
    for swapped in sorted({place[3] for place in groups}):
        here = [value for place, value in regret.items() if place[3] == swapped]
        yield f"{swapped}% swapped: regret mean {np.mean(here):.2f}, most {max(here):.1f}"
    for number in sorted({place[2] for place in groups}):
        here = [value for place, value in regret.items() if place[2:] == (number, 0)]
        if here:
            yield f"{number} images, none swapped: regret mean {np.mean(here):.2f}"
    below = [f"  {place}: {text}" for place, cells in groups.items() if (text := behind(cells))]
    yield f"more than 1 below the best recipe: {len(below)} of {len(groups)}"
    yield from below
    losses = {place: loss(cells) for place, cells in groups.items()}
    below_names = {place: round(value, 1) for place, value in losses.items() if value > 1}
    yield f"more than 1 below zero-shot: {below_names}"


def regret_of(cells: Cells) -> float:
    """How much better the best recipe or single candidate would have been."""
    rivals = [*by_name(cells, "recipes").values(), *by_name(cells, "singles").values()]
    return max(rivals) - fit_of(cells)


def loss(cells: Cells) -> float:
    """How much better zero-shot CLIP would have been."""
    return by_name(cells, "singles")[ZERO_SHOT] - fit_of(cells)


def behind(cells: Cells) -> str:
    """How far a fit is behind the best recipe, for people; empty if by at most a point."""
    rivals = by_name(cells, "recipes")
    best = max(rivals, key=rivals.__getitem__)
    lost = np.array([one["recipes"][best] - one["fit"] for one in cells])
    error = float(sem(lost)) if len(lost) > 1 else 0.0
    return f"{lost.mean():.1f} +- {error:.1f} ({best})" if lost.mean() > 1 else ""


def certainty(told: Cells) -> Iterator[str]:
    """How estimates, sets and promised errors keep what they say."""
    for swapped in sorted({one["swapped"] for one in told}):
        yield from of_estimates(swapped, [one for one in told if one["swapped"] == swapped])
    honest = [one for one in told if not one["swapped"]]
    for error in map(str, ERRORS):
        kept = [one["max_error"][error] for one in honest if error in one["max_error"]]
        over = sum(wrong > float(error) for _, wrong in kept)
        yield f"--max-error {error}: accepted in {len(kept)} of {len(honest)}, more in {over}"
    for number in sorted({one["shots"] for one in told}):
        seconds = mean([one for one in told if one["shots"] == number], lambda one: one["seconds"])
        yield f"processor seconds with {number} images: {seconds:.1f}"


def of_estimates(swapped: int, cells: Cells) -> Iterator[str]:
    """How estimates and sets hold, and how many swapped labels are found."""
    inside = 100 * np.mean(contained(cells, "fit"))
    bias = mean(cells, lambda one: one["estimate"] - one["fit"])
    sets = mean(cells, lambda one: one["sets"])
    yield (
        f"{swapped}% swapped: {inside:.1f}% of {len(cells)} intervals contain the accuracy; "
        f"estimate - accuracy {bias:+.1f}; sets for 90%: {sets:.1f}"
    )
    found, cleanlab, wrong = (
        sum(one.get(key, 0) for one in cells) for key in ("found", "cleanlab", "wrong")
    )
    places = f"{found} of {wrong} swapped labels are among the first 10% to check"
    yield f"  {places}, by cleanlab's order {cleanlab}"


def by_name(cells: Cells, key: str) -> dict[str, float]:
    """The mean accuracy of each of the recipes, or of the singles that all cells have."""
    names = set.intersection(*(set(one[key]) for one in cells))
    return {name: mean(cells, lambda one, name=name: one[key][name]) for name in sorted(names)}


def fit_of(cells: Cells) -> float:
    return mean(cells, lambda one: one["fit"])


def mean(cells: Cells, value: Callable[..., float]) -> float:
    return float(np.mean([value(one) for one in cells]))
