"""Learning curves of a study's runs, from their logs."""

import re
from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from common.errors import UsageError
from common.text import read_text

from ..results import selected_on_test
from .spec import Run
from .style import legend, plot_styles, subplots_grid
from .tables import Summary, marked

LOSS = re.compile(r"epoch \[(\d+)/\d+\] batch .* loss \S+ \(([\d.e+-]+)\)")
ACCURACY = re.compile(r"\* accuracy: ([\d.]+)%")
VALIDATION = "Evaluate on the *val* set"
Curve = dict[int, float]  # by epoch, from 1


def read_curves(folder: Path) -> tuple[Curve, Curve]:
    """The mean training loss, and the validation accuracy in percent, of each epoch of a run.

    Args:
        folder: of the run. A resumed run has several logs; the last line of an epoch counts.
    """
    loss, accuracy, epoch, validates = Curve(), Curve(), 0, False
    for line in lines(folder):
        if found := LOSS.match(line):
            epoch = int(found[1])
            loss[epoch] = float(found[2])
        elif line.startswith("Evaluate on the"):
            validates = line.startswith(VALIDATION)
        elif validates and (found := ACCURACY.match(line)):
            accuracy[epoch], validates = float(found[1]), False
    return loss, accuracy


def lines(folder: Path) -> Iterator[str]:
    for log in sorted(folder.glob("log.txt*"), key=lambda file: file.stat().st_mtime):
        try:
            yield from read_text(log).splitlines()
        except UsageError:  # too large, or damaged: other logs may have the rest
            continue


def learning_curves(summary: Summary) -> Figure | None:
    """Training loss and validation accuracy by epoch; a line for each seed."""
    panels: dict[tuple[str, str], dict[Run, Curve]] = {}
    for run in summary.results:
        if run.trains and run.shots == summary.study.shots[-1]:
            for what, curve in zip(("loss", "validation accuracy (%)"), read_curves(run.folder), strict=True):
                if len(curve) > 1:
                    panels.setdefault((f"{run.protocol}, {run.dataset}", what), {})[run] = curve
    if not panels:
        return None
    styles = plot_styles(summary)
    figure, axes = subplots_grid(len(panels), 3.6, 3)
    for ax, ((title, what), curves) in zip(axes, panels.items(), strict=True):
        for run, curve in curves.items():
            name = run.variant.name
            style = {"label": marked(name, selected_on_test(summary.results[run])), "linewidth": 1}
            ax.plot(list(curve), list(curve.values()), **styles[name] | style, markevery=0.1)
        if what == "loss":
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set(title=title, xlabel="epoch", ylabel=what)
        ax.xaxis.get_major_locator().set_params(integer=True)
    legend(figure, axes)
    return figure
