"""Tables of the cells of `benchmarks.real`."""

from collections.abc import Iterator
from typing import Any

from pandas import DataFrame, Series

from benchmarks.fits import contained, markdown, shown
from fit.candidates import ZERO_SHOT

ERRORS = 5, 20, 50  # percent that are promised
PLACE = ["set", "encoder", "shots", "swapped"]


def table(cells: DataFrame) -> Iterator[str]:
    """The lines."""
    groups = cells.groupby(PLACE, sort=False)
    means = DataFrame({place: means_of(here) for place, here in groups}).T
    means.index.names = PLACE
    yield f"{len(cells)} fits, {len(means)} cells"
    yield markdown(accuracies(means))
    yield from regrets(means)
    told = cells.dropna(subset="estimate") if "estimate" in cells else cells.head(0)
    for swapped, here in told.groupby("swapped"):
        yield f"{swapped}% swapped: {certainty(here)}"
    yield from promises(told[told["swapped"] == 0])
    for shots, seconds in told.groupby("shots")["seconds"]:
        yield f"processor seconds with {shots} images: {seconds.mean():.1f}"


def means_of(cells: DataFrame) -> dict[str, Any]:
    """The mean accuracies of a fit and its rivals, and how far it is behind the best recipe."""
    fit = cells["fit"].mean()
    each_recipe = DataFrame([*cells["recipes"]], index=cells.index)
    recipes = each_recipe.mean().sort_index()
    # Those that all cells have
    singles = DataFrame([*cells["singles"]]).dropna(axis=1).mean()
    best = recipes.idxmax()
    behind = shown(each_recipe[best] - cells["fit"])
    return {
        "fit": fit,
        "zero-shot": singles[ZERO_SHOT],
        "recipe": recipes.max(),
        "regret": max(recipes.max(), singles.max()) - fit,
        "behind": f"{behind} ({best})",
    }


def accuracies(means: DataFrame) -> DataFrame:
    """A row for each data set, encoder and share of swapped labels: the mean accuracy, and its
    distance to the best recipe.
    """
    fit = means["fit"].map("{:.1f}".format)
    entries = fit + (means["fit"] - means["recipe"]).map(" ({:+.1f})".format)
    rows = entries.unstack("shots", sort=False, fill_value="").sort_index(axis=1)
    zero_shot = means["zero-shot"].groupby(rows.index.names).last()
    rows.insert(0, "zero-shot", zero_shot.map("{:.1f}".format))
    return rows.reset_index()


def regrets(means: DataFrame) -> Iterator[str]:
    """How far a fit is from what would have been best, in hindsight on the test images."""
    regret = means["regret"].astype(float)
    for swapped, here in regret.groupby("swapped"):
        yield f"{swapped}% swapped: regret mean {here.mean():.2f}, most {here.max():.1f}"
    honest = regret[regret.index.get_level_values("swapped") == 0]
    for shots, here in honest.groupby("shots"):
        yield f"{shots} images, none swapped: regret mean {here.mean():.2f}"
    below = means["behind"][means["recipe"] - means["fit"] > 1]
    yield f"more than 1 below the best recipe: {len(below)} of {len(means)}"
    for place, text in below.items():
        yield f"  {place}: {text}"
    lost = means["zero-shot"] - means["fit"]
    for place, value in lost[lost > 1].items():
        yield f"more than 1 below zero-shot: {place}: {value:.1f}"


def certainty(cells: DataFrame) -> str:
    """How estimates and sets hold, and how many swapped labels are found."""
    inside = 100 * contained(cells, "fit").mean()
    bias = (cells["estimate"] - cells["fit"]).mean()
    text = f"{inside:.1f}% of {len(cells)} intervals contain the accuracy"
    text += f"; estimate - accuracy {bias:+.1f}; sets for 90%: {cells['sets'].mean():.1f}"
    if "wrong" not in cells or cells["wrong"].isna().all():
        return text
    found = f"{cells['found'].sum():.0f} of {cells['wrong'].sum():.0f}"
    return f"{text}; {found} swapped labels are among the first 10% to check"


def promises(cells: DataFrame) -> Iterator[str]:
    """How often thresholds promise an error, and how often they fail."""
    for error in map(str, ERRORS):
        kept: Series = cells["max_error"].str.get(error).dropna()
        over = (kept.str[1] > float(error)).sum()
        yield f"--max-error {error}: accepted in {len(kept)} of {len(cells)}, more in {over}"
