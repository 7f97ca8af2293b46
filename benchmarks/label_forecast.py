"""What the page of `tools/label.py` says that more labels add, and what they add:
`python benchmarks/label_forecast.py --output DIR`.

The command asks for the labels of a pool in rounds. A line of forecasts.jsonl in DIR has the rounds
of one pool, so that the same command resumes.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "toolbox")]

import numpy as np

from benchmarks.fits import Data, Record, measure_each, parser_of_sets, read_records
from benchmarks.labelling import (
    COMMAND,
    POOLS,
    asked,
    data_of,
    drawn,
    first_pool,
    fitted,
    guessed_again,
)
from fit.decision import Decision
from fit.labeller.advice import MORE, expected
from fit.labelling import DRAWN

ROUNDS = 6


def rounds(data: Data, seed: int) -> list[Record]:
    """The forecast after each round, None if there is none, and the truth."""
    pool = first_pool(data, seed)
    random: list[int] = []
    found = []
    for _ in range(ROUNDS):
        picks = asked(COMMAND, pool, MORE, data.train.labels)
        random += picks[MORE - MORE // DRAWN :]
        pool = guessed_again(pool.after(picks), data)
        decision, truth = fitted(data, pool, np.isin(pool.labelled, random))
        forecast = forecast_of(decision, len(pool.labelled), len(data.heads.names))
        found.append({"truth": truth, **forecast})
    return found


def forecast_of(decision: Decision, labels: int, classes: int) -> Record:
    at = decision.estimates.get("folder")
    if at is None:
        return {"added": None}
    added, width = expected(asdict(at), classes, decision.of_class, labels)
    return {"added": added, "width": at.high - at.low, "next_width": width}


def table(records: Sequence[Record]) -> None:
    """Print the means over pools."""
    for kind, number in product(POOLS, range(ROUNDS - 1)):
        own = [one["rounds"][number : number + 2] for one in records if one["pool"] == kind]
        pairs = [
            (now, after)
            for now, after in own
            if now["added"] is not None and after["added"] is not None
        ]
        if not pairs:
            continue
        added = np.mean([now["added"] for now, _ in pairs])
        truth = np.mean([after["truth"] - now["truth"] for now, after in pairs])
        widths = np.mean([[now["next_width"], after["width"]] for now, after in pairs], axis=0)
        cells = f"{added:.1f} | {truth:.1f} | {widths[0]:.0f} | {widths[1]:.0f}"
        print(f"| {kind} | {MORE * (number + 1)} | {len(pairs)} of {len(own)} | {cells} |")


def main() -> None:
    parser = parser_of_sets(__doc__)
    parser.add_argument("--pools", type=int, default=10)
    parser.add_argument("--only", choices=POOLS, nargs="+", default=POOLS)
    args = parser.parse_args()
    file = args.output / "forecasts.jsonl"

    def measured(place: Record) -> Record:
        kind, seed = place.values()
        return {"rounds": rounds(drawn(data_of(args.root, kind), kind, seed), seed)}

    pairs = product(range(1, args.pools + 1), args.only)
    if not args.table:
        measure_each(file, ({"pool": kind, "seed": seed} for seed, kind in pairs), measured)
    print("pool, labels, pools with a forecast, points added: forecast, truth; width: same")
    table(read_records(file))


if __name__ == "__main__":
    main()
