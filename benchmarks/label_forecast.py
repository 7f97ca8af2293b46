"""The forecast of the page of `tools/label.py` for more labels, and the gain that came:
`python benchmarks/label_forecast.py --output DIR`.

The command asks for the labels of a pool in rounds. A line of forecasts.jsonl in DIR has the rounds
of one pool, so that the same command resumes; `--table` prints the means over pools.
"""

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

# The project instead of benchmarks/, so that its packages are found first
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pandas import DataFrame

from benchmarks.fits import RESUMES, Record, grid, markdown, parser_of_sets, run
from benchmarks.labelling import COMMAND, POOLS, at_random, drawn, fitted, rounds
from fit.decision import Decision
from fit.labeller.advice import MORE, expected
from runs.session import run_command

ROUNDS = 6
COLUMNS = "added", "truth", "next_width", "width"


def cell(args: Namespace, pool: str, seed: int) -> Record:
    """The forecast after each round, None if there is none, and the truth."""
    data = drawn(args, pool, seed)
    budgets = [MORE] * ROUNDS
    found = []
    for labelled in rounds(data, COMMAND, budgets, seed):
        decision, truth = fitted(data, labelled, at_random(labelled, budgets))
        forecast = forecast_of(decision, len(labelled.labelled), len(data.heads.names))
        found.append({"truth": truth, **forecast})
    return {"rounds": found}


def forecast_of(decision: Decision, labels: int, classes: int) -> Record:
    at = decision.estimates.get("folder")
    if at is None:
        return {"added": None}
    added, width = expected(asdict(at), classes, decision.of_class, labels)
    return {"added": added, "width": at.high - at.low, "next_width": width}


def table(records: DataFrame) -> Iterator[str]:
    """Points added and width of the interval, each as foreseen and in truth: means over pools."""
    rows = []
    for kind, pools in records.groupby("pool")["rounds"]:
        for number in range(ROUNDS - 1):
            pairs = DataFrame(map(pair, (one[number : number + 2] for one in pools))).dropna()
            if len(pairs):
                labels = MORE * (number + 1)
                means = pairs.mean().map("{:.1f}".format)
                rows.append([kind, labels, f"{len(pairs)} of {len(pools)}", *means[[*COLUMNS]]])
    yield markdown(DataFrame(rows, columns=["pool", "labels", "pools with a forecast", *COLUMNS]))


def pair(rounds: Sequence[Record]) -> Record:
    """The forecast of a round and what came in the next; without numbers if one has no forecast."""
    now, after = rounds
    if now["added"] is None or after["added"] is None:
        return dict.fromkeys(COLUMNS)
    truth = after["truth"] - now["truth"]
    return {
        "added": now["added"],
        "truth": truth,
        "next_width": now["next_width"],
        "width": after["width"],
    }


def main() -> None:
    parser = parser_of_sets(__doc__)
    parser.add_argument("--pools", type=int, default=10)
    parser.add_argument("--only", choices=POOLS, nargs="+", default=POOLS)
    args = parser.parse_args()
    places = grid(seed=range(1, args.pools + 1), pool=args.only)
    run(args, "forecasts.jsonl", places, cell, table)


if __name__ == "__main__":
    run_command(main, RESUMES)
