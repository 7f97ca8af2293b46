"""The results of a study for a reader with one minute: sentences, and a table for each protocol."""

import math
from functools import partial

import pandas as pd

from common.names import printable

from ..comparing import seed_interval, smallest_difference
from .render import MISSING, Cell, Table, about_mark, accuracy, describe_spread, grid, number
from .tables import Summary, marked


def overview(summary: Summary) -> list[Table]:
    """For each protocol, the best method first: averages over datasets, the training time, the calibration error, and
    the choices with their images."""
    tables = []
    for protocol, cells in summary.cells.query("dataset == 'average'").groupby("protocol", sort=False):
        cells = cells[cells["mean"].notna().groupby(cells["method"]).transform("any")]
        main = summary.main_part(protocol)
        times = summary.times[summary.times["protocol"] == protocol]
        if protocol == "few_shot":  # every number of shots is trained
            times = times[times["part"] == main]
        several, devices = times["device"].nunique() > 1, ", ".join(times["device"].dropna().unique())
        cells = cells.sort_values("part", key=lambda part: part != main, kind="stable")  # what ranks them comes first
        order = cells[cells["part"] == main].set_index("method")["mean"].sort_values(ascending=False, kind="stable")
        header, rows = grid(cells, "part", partial(accuracy, summary))
        rows.sort(key=lambda row: list(order.index).index(row[0].text))
        calibration = summary.measures.query("protocol == @protocol").pivot(
            index="method", columns="part", values="ece"
        )
        parts = [part for part in header if part in calibration and calibration[part].notna().any()]
        chosen = {row[0].text: chosen_on(summary, protocol, row[0].text) for row in rows}
        for row in rows:
            name = row[0].text
            own = times[times["method"] == name].itertuples()
            taken = ", ".join(f"{time.seconds:.1f}" + f" ({time.device})" * several for time in own)
            row.append(Cell(taken or MISSING))
            row += [Cell(number(calibration[part].get(name, math.nan), ".1f")) for part in parts]
            row += [Cell(chosen[name])] if any(chosen.values()) else []
        header += ["training time (s)", *(f"ECE, {part} (%)" for part in parts)]
        header += ["chosen on images"] if any(chosen.values()) else []
        note = f"Sorted by {main}. {describe_spread(summary)} Averages over {', '.join(summary.averaged(protocol))}. "
        note += f"Training time: mean of a run{f' on {devices}' if devices else ''}.{about_mark(cells)}"
        tables += [Table(f"Summary: {protocol}", header, rows, note)] if rows else []
    return tables


def chosen_on(summary: Summary, protocol: str, method: str) -> str:
    """The choices of a method's runs and their images, by the data-use cards; empty without cards."""
    texts = set()
    for run, found in summary.results.items():
        card = found.get("data_use") if (run.protocol, run.variant.name) == (protocol, method) else None
        if card:
            choices = card.get("choose")
            texts |= {"not known"} if choices is None else {"nothing"} if not choices else set()
            for each in choices or ():
                text = f"{printable(each.get('what'))}: {printable(each.get('split'))}"
                texts.add(marked(text, each["test_images"] > 0))
    return ", ".join(sorted(texts - {"nothing"}) or texts)


def headlines(summary: Summary) -> list[str]:
    """For each protocol and kind of method, how sure it is that the best method is better than the second.

    Methods that were selected on test images take no part.
    """
    found = []
    for protocol in summary.study.protocols:
        part = summary.main_part(protocol)
        cells = summary.cells.query("protocol == @protocol and part == @part and dataset == 'average'")
        cells = cells[~cells["selected_on_test"]].dropna(subset="mean").sort_values("mean", ascending=False)
        for kind, of_kind in cells.groupby("kind", sort=False):
            if len(of_kind) < 2:
                continue
            first, second = list(of_kind.itertuples())[:2]
            among = f" of the {kind} methods" if cells["kind"].nunique() > 1 else ""
            text = f"{protocol}: {first.method} is first{among} with {part} {first.mean:.1f}%, "
            text += f"{first.mean - second.mean:.1f} points above {second.method}. "
            found.append(text + how_sure(summary, protocol, part, first.method, second.method))
    return found


def how_sure(summary: Summary, protocol: str, part: str, first: str, second: str) -> str:
    """A sentence on whether the seeds show that the first method is better than the second."""
    one, other = (summary.by_seed(protocol, part, method) for method in (first, second))
    seeds = (one - other)[summary.averaged(protocol)].dropna().mean(axis="columns")
    low, high = seed_interval(seeds)
    if pd.isna(low):
        return "With one seed, nothing says how sure this is."
    if low > 0:
        return f"The {len(seeds)} seeds show that it is better (95% interval {low:+.1f} to {high:+.1f})."
    least = smallest_difference(seeds)
    could = "" if pd.isna(least) else f"; they could show a difference of {least:.1f} points"
    return f"The {len(seeds)} seeds do not show that it is better (95% interval {low:+.1f} to {high:+.1f}{could})."
