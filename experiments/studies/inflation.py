"""The points that a choice of an epoch, or of the settings of `choose`, on test images adds.

Each candidate, an epoch whose checkpoint is kept or the trials of some values, is tested on the images that may choose
and on the test images. Then the test accuracies of three candidates are compared: the one without a choice, the one
that the study's rule chooses, and the best one on test images.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from common.errors import UsageError

from ..results import read_results
from .choose import ORACLE, VALIDATION, best
from .executor import check_validation, read_dataset
from .plots import subplots_grid
from .render import Cell, Table, number
from .spec import Run, Study
from .tables import MARK, MARKED, shots_label

EPOCH, SETTINGS = "epoch", "settings"
TABLE = ["protocol", "shots", "chosen", "by"]  # the names of a table, and of a panel
ACCURACIES = {"default": "without a choice", "honest": "by the rule", "on_test": f"on test images {MARK}"}
STYLES = {"default": ("o", "white", 120), "honest": ("s", "#56b4e9", 45), "on_test": ("D", "#d55e00", 14)}


class Candidate(NamedTuple):
    """An epoch, or values of settings.

    Attributes:
        tests: the runs whose mean accuracy is that on test images.
        choosing: the runs whose mean accuracy chooses; none if the dataset has no images that may.
    """

    tests: tuple[Run, ...]
    choosing: tuple[Run, ...]


@dataclass(frozen=True)
class Choice:
    """A choice among candidates, by their names; `default` is the one without a choice."""

    protocol: str
    shots: int
    chosen: str  # EPOCH or SETTINGS
    by: str
    method: str
    dataset: str
    default: str
    candidates: dict[str, Candidate]

    def runs(self) -> list[Run]:
        """The runs that measure the candidates."""
        return [run for each in self.candidates.values() for run in (*each.tests, *each.choosing)]

    def row(self) -> dict[str, object]:
        """Its names and the three accuracies on test images, in percent."""
        on_test = {name: mean_accuracy(each.tests) for name, each in self.candidates.items()}
        choosing = {name: mean_accuracy(each.choosing) for name, each in self.candidates.items() if each.choosing}
        names = {key: getattr(self, key) for key in (*TABLE, "method", "dataset")}
        return names | {
            "candidates": len(self.candidates),
            "default": on_test[self.default],
            "honest": on_test[best(choosing)] if choosing else None,
            "on_test": max(on_test.values()),
        }


def mean_accuracy(runs: Iterable[Run]) -> float:
    return fmean(found["accuracy"] for run in runs if (found := read_results(run.folder)))


def choices(study: Study) -> list[Choice]:
    """Each choice with two or more candidates: of an epoch of each finished run, and of settings by finished trials.

    Raises:
        UsageError: there are none.
    """
    settings, all_of = list(of_settings(study)), study.searches
    if left := len(all_of) - len(settings):
        print(f"Left out: {left} of {len(all_of)} choices of settings, whose trials are not finished", file=sys.stderr)
    epochs, trainings = list(of_epochs(study)), [run for run, *_ in study.sequences() if run.trains]
    if epochs and (left := sum(read_results(run.folder) is None for run in trainings)):
        print(f"Left out: {left} of {len(trainings)} training runs, which are not finished", file=sys.stderr)
    found = [*settings, *epochs]
    if not found:
        what = "the study has no choice with all its trials, and no finished run that keeps several epochs"
        remedy = "add choose, or TRAIN.CHECKPOINT_FREQ 1 to the overrides, and run it with tools/study.py run"
        raise UsageError(what, remedy)
    return found


def of_settings(study: Study) -> Iterator[Choice]:
    """One choice for all seeds, as the study makes it. The default are the first values."""
    for search in study.searches:
        if not all(read_results(run.folder) for run in chain(*search.own.values(), *search.trials.values())):
            continue
        oracle, tested = study.choose.by == ORACLE, study.choose.rule.split == "test"
        validated = oracle and has_validation(study.root, search.dataset)
        candidates = {}
        for values, own in search.own.items():
            tests = own if tested else tuple(evaluation(study, run, "test") for run in own)
            choosing = () if oracle else search.trials[values]
            if validated:
                choosing = tuple(evaluation(study, run, "val") for run in own)
            candidates[" ".join(values)] = Candidate(tests, choosing)
        of = (search.protocol, search.shots, SETTINGS, VALIDATION if oracle else study.choose.by)
        yield Choice(*of, search.variant.name, search.dataset, next(iter(candidates)), candidates)


def of_epochs(study: Study) -> Iterator[Choice]:
    """A choice for each run, as TEST.FINAL_MODEL best_val makes it. The default is the last epoch."""
    for run, *_ in study.sequences():
        names = (re.fullmatch(r"model\.pth\.tar-(\d+)", file.name) for file in run.folder.glob("*/model*"))
        epochs = sorted({int(name[1]) for name in names if name})
        if not run.trains or len(epochs) < 2 or not read_results(run.folder):
            continue
        splits = ("test", "val") if has_validation(study.root, run.dataset) else ("test",)
        tested = {str(epoch): [evaluation(study, run, split, epoch) for split in splits] for epoch in epochs}
        candidates = {epoch: Candidate((test,), tuple(choosing)) for epoch, (test, *choosing) in tested.items()}
        of = (run.protocol, run.shots, EPOCH, VALIDATION, run.variant.name, run.dataset)
        yield Choice(*of, str(epochs[-1]), candidates)


def evaluation(study: Study, run: Run, split: str, epoch: int | None = None) -> Run:
    """The test of what a run has learned on a split, in a folder of its own.

    Args:
        epoch: whose checkpoint is tested, by default the one that the run has tested.
    """
    place = Path("inflation", split) / run.folder.relative_to(study.output)
    folder = study.output / place / (f"epoch{epoch}" if epoch else "")
    words = list(run.arguments)
    words[words.index("--output-dir") + 1] = str(folder)
    if "--ood" in words:
        del words[words.index("--ood") : words.index("--ood") + 2]
    options = ["--eval-only", "--model-dir", str(run.folder)] if run.trains else []
    options += ["--load-epoch", str(epoch)] if epoch else []
    at = words.index("--trainer")
    return replace(run, folder=folder, arguments=(*words[:at], *options, *words[at:], "TEST.SPLIT", split))


@cache
def has_validation(root: Path, dataset: str) -> bool:
    """Whether a dataset has validation images, none of which is a test image."""
    try:
        check_validation(read_dataset(root, dataset), dataset)
    except UsageError:
        return False
    return True


def compare(study: Study, found: Iterable[Choice]) -> pd.DataFrame:
    """A row for each method and dataset, and for the average over the study's datasets, NaN if one is missing.

    Columns: TABLE, method, dataset, the number of candidates, the mean test accuracies of ACCURACIES in percent, the
    number of choices (of an epoch, the finished runs), and how many points choosing on test images adds to the rule
    (`worth`) and to no choice (`over_default`).
    """
    rows = pd.DataFrame([choice.row() for choice in found]).astype(dict.fromkeys(ACCURACIES, float))
    keys = [*TABLE, "method"]
    rows["choices"] = 1
    groups = rows.groupby([*keys, "dataset"], sort=False)
    of_datasets = groups.mean().assign(choices=groups.size()).reset_index()
    of_methods = of_datasets.groupby(keys, sort=False)[["candidates", *ACCURACIES, "choices"]]
    averages = of_methods.agg(lambda values: values.mean(skipna=False))
    expected = [len(study.trained_on(protocol)) for protocol in averages.index.get_level_values("protocol")]
    averages.loc[of_methods.size() < expected, list(ACCURACIES)] = None
    cells = pd.concat([of_datasets, averages.reset_index().assign(dataset="average")], ignore_index=True)
    cells["worth"] = cells["on_test"] - cells["honest"]
    cells["over_default"] = cells["on_test"] - cells["default"]
    return cells


def tables(cells: pd.DataFrame) -> list[Table]:
    """A table for each protocol, number of shots and kind of choice."""
    made = []
    for (protocol, shots, chosen, by), rows in cells.groupby(TABLE, sort=False):
        default = "last epoch" if chosen == EPOCH else "first values"
        header = [
            *("method", "dataset", "choices", "candidates"),
            *(default, f"by {by}", ACCURACIES["on_test"], "worth of test"),
        ]
        lines = [
            [Cell(row.method), Cell(row.dataset), Cell(f"{row.choices:g}"), Cell(f"{row.candidates:g}")]
            + [Cell(number(value)) for value in (row.default, row.honest, row.on_test)]
            + [Cell(number(row.worth, "+.2f"))]
            for _, of_method in rows.groupby("method", sort=False)
            for row in of_method.itertuples()
        ]
        note = "Test accuracy in %, mean over seeds; worth: points that a choice on test images adds to that by the "
        note += f"rule. {'Each run chooses its epoch' if chosen == EPOCH else 'One choice for all seeds'}. {MARKED}."
        made.append(Table(f"{protocol}, {shots_label(shots)}: choice of {chosen}", header, lines, note))
    return made


def picture(cells: pd.DataFrame) -> Figure:
    """The averages of each method: without a choice, by the rule, and on test images; a panel for each table."""
    panels = dict(list(cells[cells["dataset"] == "average"].groupby(TABLE, sort=False)))
    height = 1.3 + 0.35 * max(map(len, panels.values()))
    figure, drawn = subplots_grid(panels, 7, height, columns=1)
    figure.set_figheight(figure.get_figheight() + 0.7)
    for ax, (protocol, shots, chosen, by), rows in drawn:
        lines, accuracies = range(len(rows)), rows[list(ACCURACIES)]
        right = accuracies.max(axis="columns")
        ax.hlines(lines, accuracies.min(axis="columns"), right, color="0.8", zorder=1)
        for key, (marker, colour, area) in STYLES.items():  # a smaller marker is drawn over a larger one
            label = ACCURACIES[key]
            ax.scatter(rows[key], lines, area, marker=marker, color=colour, edgecolor="black", label=label, zorder=2)
        for line, worth, x in zip(lines, rows["worth"], right, strict=True):
            text = "" if pd.isna(worth) else f"{worth:+.2f}"
            ax.annotate(text, (x, line), (10, 0), textcoords="offset points", va="center", fontsize=8)
        ax.set_yticks(lines, rows["method"])
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.margins(x=0.12)
        ax.set(title=f"{protocol}, {shots_label(shots)}: {chosen}, by {by}", xlabel="test accuracy (%)")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    figure.supxlabel(f"{MARKED}. Numbers: points over the rule.", x=0.01, ha="left", fontsize=8)
    return figure
