"""Whether a fit of several backbones chooses the right one: `python -m benchmarks.real.backbones
--sources DIR --output DIR`.

Each cell is a fit that chooses among encoders, on the draws of `benchmarks.real`, and a fit with
each encoder alone; test images say which of these was best. backbones.jsonl has a line for each
cell, so that the same command resumes. `--table` prints what the cells say.
"""

import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.fits import add_record, read_records
from fit.candidates import CANDIDATES
from fit.decision import Decision, decide_among
from fit.plan import Plan
from fit.request import FitRequest
from fit.story import methods_of
from fit.trials import Backbone, Examples

from .data import SMALL, Data, loaded
from .options import parser_of_heads

APART = 3.0  # points between the best encoder and the second, from which a choice must be right


def cell(data: dict[str, Data], shots: int, seed: int, methods: list[str]) -> dict[str, Any]:
    """The choice among encoders, and the accuracy on test images of a fit with each."""
    request = FitRequest(Path("images"), Path("model"), methods=tuple(methods), seed=seed)
    backbones = []
    for name, one in data.items():
        one.heads.seed = seed
        x, labels, _ = one.draw(shots, seed, 0)
        examples = Examples(x, torch.from_numpy(labels), np.arange(len(labels)), one.heads.names)
        candidates = methods_of(request, CANDIDATES, one.heads)
        backbones.append(Backbone(name, one.heads, examples, candidates))
    with redirect_stdout(io.StringIO()):
        no_curve = Plan(end=0.0)
        place, decision = decide_among(backbones, request, no_curve)
        alone = {
            one.name: decide_among([replace(one, name="")], request, no_curve)[1]
            for one in backbones
            if one is not backbones[place]
        }
    chosen = backbones[place].name
    decisions = alone | {chosen: decision}
    accuracies = {one.name: tested(one, decisions[one.name], data[one.name]) for one in backbones}
    estimate = decision.estimates["folder"]
    record = {"chosen": chosen, "accuracies": accuracies, "estimate": estimate.accuracy}
    record["scores"] = {row["backbone"]: row["score"] for row in decision.backbones}
    return record | {"low": estimate.low, "high": estimate.high}


def tested(backbone: Backbone, decision: Decision, data: Data) -> float:
    """The accuracy of a decision on the test images, in percent."""
    seen = backbone.examples.x, backbone.examples.y
    logits: Any = sum(
        weight * backbone.heads.answers(one, seen, data.test_x).numpy()
        for one, weight in decision.chosen
    )
    return 100 * float(np.mean(logits.argmax(axis=1) == data.test_y))


def table(cells: list[dict[str, Any]]) -> Iterator[str]:
    """How often the choice is right, and what it loses."""
    apart = []
    for one in cells:
        best, second, *_ = sorted(one["accuracies"].values(), reverse=True)
        one["lost"] = best - one["accuracies"][one["chosen"]]
        if best - second > APART:
            apart.append(one)
    yield f"{len(cells)} fits; encoders differ by more than {APART:g} points in {len(apart)}"
    for shots in sorted({one["shots"] for one in cells}):
        here = [one for one in apart if one["shots"] == shots]
        right = sum(one["lost"] == 0 for one in here)
        yield f"{shots} images: right in {right} of {len(here)}"
    yield f"right in {sum(one['lost'] == 0 for one in apart)} of {len(apart)}"
    right = [pair for one in cells for pair in pairs(one)]
    yield f"of each two encoders that differ so much: right in {sum(right)} of {len(right)}"
    for one in cells:
        if one["lost"] > APART:
            place = f"{one['set']}, {one['shots']} images, seed {one['seed']}"
            yield f"  {place}: {one['lost']:.1f} lost by {one['chosen']}"
    yield f"points lost on average: {np.mean([one['lost'] for one in cells]):.2f}"
    inside = [one["low"] <= one["accuracies"][one["chosen"]] <= one["high"] for one in cells]
    yield f"intervals that contain the accuracy: {100 * np.mean(inside):.1f}%"
    bias = [one["estimate"] - one["accuracies"][one["chosen"]] for one in cells]
    yield f"estimate - accuracy: {np.mean(bias):+.1f}"


def pairs(cell: dict[str, Any]) -> Iterator[bool]:
    """Whether a fit of two encoders would choose the better one, for each two that are apart."""
    for one, other in combinations(cell["scores"], 2):
        lead = cell["accuracies"][one] - cell["accuracies"][other]
        if abs(lead) > APART:
            yield (lead > 0) == (cell["scores"][one] < cell["scores"][other])


def main() -> None:
    encoders = [SMALL, "lite0", "lite2"]
    args = parser_of_heads(
        __doc__, encoders=encoders, shots=[2, 4, 8, 16], seeds=[1, 2]
    ).parse_args()
    file = args.output / "backbones.jsonl"
    done = read_records(file)
    if args.table:
        print("\n".join(table(done)))
        return
    torch.set_num_threads(1)
    for name in args.sets:
        data = {one: loaded(name, one, tuple(args.sources), args.output) for one in args.encoders}
        for seed, shots in product(args.seeds, args.shots):
            place = {"set": name, "shots": shots, "seed": seed}
            if any(place.items() <= record.items() for record in done):
                continue
            record = place | cell(data, shots, seed, args.methods)
            add_record(file, record)
            print(record, flush=True)


if __name__ == "__main__":
    main()
