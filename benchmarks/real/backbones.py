"""Whether a fit of several backbones chooses the right one: `python -m benchmarks.real.backbones
--sources DIR --output DIR`.

Each cell is a fit that chooses among encoders, on the draws of `benchmarks.real`, and a fit with
each encoder alone; test images say which of these was best. backbones.jsonl has a line for each
cell, so that the same command resumes. `--table` prints what the cells say.
"""

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from pandas import DataFrame

from benchmarks.fits import (
    RESUMES,
    Data,
    Record,
    contained,
    decided_among,
    estimate_of,
    grid,
    percent,
    request_of,
    run,
    tested,
)
from fit.candidates import CANDIDATES
from fit.story import methods_of
from fit.trials import Backbone
from runs.session import run_command

from .data import SMALL, data_for, parser

APART = 3.0  # points between the best encoder and the second, from which a choice must be right


def cell(args: Namespace, set: str, seed: int, shots: int) -> Record:
    """The choice among encoders, and the accuracy on test images of a fit with each."""
    data = {one: data_for(args, set, one) for one in args.encoders}
    backbones = [backbone_of(one, data[one], shots, seed, args.methods) for one in data]
    place, chosen = decided_among(backbones, seed, 0.0)
    accuracies = {}
    for one in backbones:
        decision = chosen
        if one is not backbones[place]:
            _, decision = decided_among([replace(one, name="")], seed, 0.0)
        accuracies[one.name] = percent(tested(decision, one.examples, data[one.name]))
    return {
        "chosen": backbones[place].name,
        "accuracies": accuracies,
        "scores": {row["backbone"]: row["score"] for row in chosen.backbones},
        **estimate_of(chosen),
    }


def backbone_of(name: str, data: Data, shots: int, seed: int, methods: Sequence[str]) -> Backbone:
    """An encoder, with so many images of each class."""
    data.heads.seed = seed
    drawn, _ = data.draw(shots, seed, 0)
    candidates = methods_of(request_of(seed, methods), CANDIDATES, data.heads)
    return Backbone(name, data.heads, drawn.examples(data.heads.names), candidates)


def table(cells: DataFrame) -> Iterator[str]:
    """How often the choice is right, and what it loses."""
    accuracies = DataFrame([*cells["accuracies"]])
    two = accuracies.apply(lambda row: row.nlargest(2).tolist(), axis=1, result_type="expand")
    cells["accuracy"] = [one["accuracies"][one["chosen"]] for _, one in cells.iterrows()]
    cells["lost"] = two[0] - cells["accuracy"]
    apart = cells[two[0] - two[1] > APART]
    yield f"{len(cells)} fits; encoders differ by more than {APART:g} points in {len(apart)}"
    for shots, here in apart.groupby("shots"):
        yield f"{shots} images: right in {(here['lost'] == 0).sum()} of {len(here)}"
    yield f"right in {(apart['lost'] == 0).sum()} of {len(apart)}"
    correct = [one for found in map(pairs, cells["accuracies"], cells["scores"]) for one in found]
    yield f"of each two encoders that differ so much: right in {sum(correct)} of {len(correct)}"
    for _, one in cells[cells["lost"] > APART].iterrows():
        place = f"{one['set']}, {one['shots']} images, seed {one['seed']}"
        yield f"  {place}: {one['lost']:.1f} lost by {one['chosen']}"
    yield f"points lost on average: {cells['lost'].mean():.2f}"
    yield f"intervals that contain the accuracy: {100 * contained(cells, 'accuracy').mean():.1f}%"
    yield f"estimate - accuracy: {(cells['estimate'] - cells['accuracy']).mean():+.1f}"


def pairs(accuracies: Mapping[str, float], scores: Mapping[str, float]) -> Iterator[bool]:
    """Whether a fit of two encoders would choose the better one, for each two that are apart."""
    for one, other in combinations(scores, 2):
        lead = accuracies[one] - accuracies[other]
        if abs(lead) > APART:
            yield (lead > 0) == (scores[one] < scores[other])


def main() -> None:
    encoders = [SMALL, "lite0", "lite2"]
    options = parser(__doc__, encoders=encoders, shots=[2, 4, 8, 16], seeds=[1, 2])
    args = options.parse_args()
    places = grid(set=args.sets, seed=args.seeds, shots=args.shots)
    run(args, "backbones.jsonl", places, cell, table)


if __name__ == "__main__":
    run_command(main, RESUMES)
