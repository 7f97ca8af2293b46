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

import numpy as np
import torch

from benchmarks.fits import (
    Data,
    Record,
    contained,
    estimate_of,
    measure_each,
    percent,
    read_records,
    request_of,
    tested,
)
from fit.candidates import CANDIDATES
from fit.decision import Decision, decide_among
from fit.plan import Plan
from fit.story import methods_of
from fit.trials import Backbone

from .data import SMALL, loaded
from .options import parser_of_heads

APART = 3.0  # points between the best encoder and the second, from which a choice must be right


def cell(data: dict[str, Data], shots: int, seed: int, methods: list[str]) -> Record:
    """The choice among encoders, and the accuracy on test images of a fit with each."""
    backbones = [backbone_of(name, one, shots, seed, methods) for name, one in data.items()]
    place, chosen = decided(backbones, seed)
    accuracies = {}
    for one in backbones:
        decision = chosen
        if one is not backbones[place]:
            _, decision = decided([replace(one, name="")], seed)
        accuracies[one.name] = percent(tested(decision, one.examples, data[one.name]))
    return {
        "chosen": backbones[place].name,
        "accuracies": accuracies,
        "scores": {row["backbone"]: row["score"] for row in chosen.backbones},
        **estimate_of(chosen),
    }


def decided(backbones: list[Backbone], seed: int) -> tuple[int, Decision]:
    """`decide_among` without a learning curve."""
    with redirect_stdout(io.StringIO()):
        return decide_among(backbones, request_of(seed), Plan(end=0.0))


def backbone_of(name: str, data: Data, shots: int, seed: int, methods: list[str]) -> Backbone:
    """An encoder, with so many images of each class."""
    data.heads.seed = seed
    drawn, _ = data.draw(shots, seed, 0)
    candidates = methods_of(request_of(seed, methods), CANDIDATES, data.heads)
    return Backbone(name, data.heads, drawn.examples(data.heads.names), candidates)


def table(cells: list[Record]) -> Iterator[str]:
    """How often the choice is right, and what it loses."""
    apart = []
    for one in cells:
        best, second, *_ = sorted(one["accuracies"].values(), reverse=True)
        one["accuracy"] = one["accuracies"][one["chosen"]]
        one["lost"] = best - one["accuracy"]
        if best - second > APART:
            apart.append(one)
    yield f"{len(cells)} fits; encoders differ by more than {APART:g} points in {len(apart)}"
    for shots in sorted({one["shots"] for one in cells}):
        here = [one for one in apart if one["shots"] == shots]
        yield f"{shots} images: {right(here)}"
    yield right(apart)
    correct = [pair for one in cells for pair in pairs(one)]
    yield f"of each two encoders that differ so much: right in {sum(correct)} of {len(correct)}"
    for one in cells:
        if one["lost"] > APART:
            place = f"{one['set']}, {one['shots']} images, seed {one['seed']}"
            yield f"  {place}: {one['lost']:.1f} lost by {one['chosen']}"
    yield f"points lost on average: {np.mean([one['lost'] for one in cells]):.2f}"
    inside = np.mean(contained(cells, "accuracy"))
    yield f"intervals that contain the accuracy: {100 * inside:.1f}%"
    bias = [one["estimate"] - one["accuracy"] for one in cells]
    yield f"estimate - accuracy: {np.mean(bias):+.1f}"


def right(cells: list[Record]) -> str:
    """In how many the best encoder was chosen."""
    return f"right in {sum(one['lost'] == 0 for one in cells)} of {len(cells)}"


def pairs(cell: Record) -> Iterator[bool]:
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
    if args.table:
        print("\n".join(table(read_records(file))))
        return

    def measured(place: Record) -> Record:
        name, seed, shots = place.values()
        sources = tuple(args.sources)
        data = {one: loaded(name, one, sources, args.output) for one in args.encoders}
        return cell(data, shots, seed, args.methods)

    places = [
        {"set": name, "seed": seed, "shots": shots}
        for name, seed, shots in product(args.sets, args.seeds, args.shots)
    ]
    torch.set_num_threads(1)
    measure_each(file, places, measured)


if __name__ == "__main__":
    main()
