"""What the page of `tools/label.py` says that more labels add, and what they add:
`python benchmarks/label_forecast.py --output DIR`.

The command asks for the labels of a pool in rounds. A line of forecasts.jsonl in DIR has the rounds
of one pool, so that the same command resumes.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

sys.path[:0] = [
    str(Path(__file__).resolve().parent.parent),
    str(Path(__file__).resolve().parent.parent / "toolbox"),
]

import numpy as np
import torch

from benchmarks.fits import add_record, read_records
from benchmarks.labelling import COMMAND, HEAD, POOLS, Data, asked, data_of, drawn, fitted
from fit.candidates import CANDIDATES
from fit.decision import Decision
from fit.labeller.advice import MORE, expected
from fit.labelling import DRAWN
from measures.labelling import Pool
from trainers.base.prompted import normalize

ROUNDS = 6


def rounds(data: Data, seed: int) -> list[dict[str, Any]]:
    """The forecast after each round, None if there is none, and the truth."""
    heads, train, _ = data
    zero_shot = heads.answers(CANDIDATES[0], (train.x, torch.tensor([])), train.x).numpy()
    features = normalize(heads.inputs("ZeroshotCLIP", train.x)).numpy()
    pool = Pool(features, zero_shot, (), seed)
    random: list[int] = []
    found = []
    for _ in range(ROUNDS):
        picks = asked(COMMAND, pool, MORE, train.labels)
        random += picks[MORE - MORE // DRAWN :]
        known = [*pool.labelled, *picks]
        seen = train.x[known], torch.from_numpy(train.labels[known])
        pool = Pool(features, heads.answers(HEAD, seen, train.x).numpy(), known, seed)
        decision, truth = fitted(data, known, seed, np.isin(known, random))
        found.append({"truth": truth, **forecast_of(decision, len(known), len(heads.names))})
    return found


def forecast_of(decision: Decision, labels: int, classes: int) -> dict[str, Any]:
    at = decision.estimates.get("folder")
    if at is None:
        return {"added": None}
    added, width = expected(asdict(at), classes, decision.of_class, labels)
    return {"added": added, "width": at.high - at.low, "next_width": width}


def table(records: Sequence[dict[str, Any]]) -> None:
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
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder of forecasts.jsonl")
    add("--root", type=Path, default=Path("data"), help="folder of the datasets")
    add("--pools", type=int, default=10)
    add("--only", choices=POOLS, nargs="+", default=POOLS)
    args = parser.parse_args()
    file = args.output / "forecasts.jsonl"
    args.output.mkdir(parents=True, exist_ok=True)
    done = {(one["pool"], one["seed"]) for one in read_records(file)}
    data = {kind: data_of(args.root, kind) for kind in args.only}
    for seed, kind in product(range(1, args.pools + 1), args.only):
        if (kind, seed) not in done:
            found = rounds(drawn(data[kind], kind, seed), seed)
            add_record(file, {"pool": kind, "seed": seed, "rounds": found})
    print("pool, labels, pools with a forecast, points added: forecast, truth; width: same")
    table(read_records(file))


if __name__ == "__main__":
    main()
