"""Which candidates of a fit earn their place: `python -m benchmarks.real.ablation DIR [NAME ...]`.

DIR has files SET_ENCODER_IMAGES_DRAW.npz with `names` of candidates, zero-shot CLIP first, and
their logits, of spread 1: `held`, of held-out images with `labels` (candidates, repeats, images,
classes; empty if each class has one image), and `test`, of test images with labels `ty`
(candidates, images, classes). `by_names` are zero-shot CLIP's logits of the training images,
`fresh` is `Heads.freshness`.

Each line is a list and its differences to a vote of any number of all candidates. With names it is
that list, and the list without each of them; else, the least useful candidate leaves, one by one.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pandas import DataFrame, Series

from fit import choose
from fit.candidates import Candidate, ensemble
from inference.calibration import Temperature
from inference.sample import Sample

CHOSE = "digits", "openclipart", "small_counts"  # sets on which the rules of a fit were chosen
SCORE = Series({"accuracy": 1.0, "nats": -20.0})  # 0.2 points count as much as 0.01 nats


def weights_of(cell: Mapping[str, Any], places: Sequence[int]) -> np.ndarray:
    """(candidates,): the choice of a fit among the candidates at these places."""
    candidates = [Candidate(cell["names"][place].split()[0]) for place in places]
    sample = Sample.of(cell["labels"])
    if len(cell["folds"]):
        held = cell["held"][places].astype(float)
        return choose.choose(
            held, sample, ensemble(candidates, choose.evidence(held[0, 0], sample))
        )
    shares = ensemble(candidates, choose.evidence(cell["by_names"].astype(float), sample))
    weights = np.zeros(len(places))
    weights[[*shares]] = [*shares.values()]
    return weights / cell["fresh"][places]


def measured(cell: Mapping[str, Any], names: Sequence[str], votes: int) -> dict[str, float]:
    """The accuracy in percent and the cross-entropy of the choice, on the test images."""
    choose.MOST_VOTES = votes
    places = [place for place, name in enumerate(cell["names"]) if name in names]
    weights = weights_of(cell, places)
    answers = choose.combine(weights, cell["test"][places].astype(float))
    found = {"accuracy": 100 * float(np.mean(answers.argmax(axis=1) == cell["ty"]))}
    if len(cell["folds"]):
        held = choose.combine(weights, cell["held"][places].astype(float))[0]
        temperature = Temperature.fit(held, cell["labels"]).temperature
        found["nats"] = float(choose.losses(answers[None] / temperature, cell["ty"]).mean())
    return found


def results(cells: Mapping[str, Any], names: Sequence[str], votes: int = 5) -> DataFrame:
    """A row for each file."""
    found = DataFrame({name: measured(cell, names, votes) for name, cell in cells.items()}).T
    parts = found.index.str.rsplit("_", n=3)
    return found.set_index([parts.str[0], parts.str[1], parts.str[2]])


def line(found: DataFrame, before: DataFrame, title: str) -> str:
    """The differences on the sets that chose the rules, and on the others; the worst cell is less
    its standard error over draws.
    """
    apart = found - before
    chose = apart.index.get_level_values(0).isin(CHOSE)
    texts = [title]
    for part in (apart[chose], apart[~chose]):
        cells = part["accuracy"].groupby(level=[0, 1, 2])
        worst = (cells.mean() + cells.sem()).min()
        mean = part.mean()
        texts.append(f"{mean['accuracy']:+.2f} {mean['nats']:+.4f} worst {worst:+.1f}")
    return " | ".join(texts)


def greedy(cells: Mapping[str, Any], names: Sequence[str], before: DataFrame) -> Iterator[str]:
    """A line for each candidate that leaves."""
    while len(names) > 1:
        tried = {one: results(cells, [name for name in names if name != one]) for one in names[1:]}
        score = {one: float((found.mean() * SCORE).sum()) for one, found in tried.items()}
        least = max(score, key=score.__getitem__)
        names = [name for name in names if name != least]
        yield line(tried[least], before, f"without {least}")


def main() -> None:
    folder, *names = sys.argv[1:]
    cells = {file.stem: dict(np.load(file)) for file in sorted(Path(folder).glob("*.npz"))}
    lists = [list(map(str, cell["names"])) for cell in cells.values()]
    everything = max(lists, key=len)  # not each encoder can have all
    before = results(cells, everything, len(everything))
    print(line(results(cells, names or everything), before, "votes of five"), flush=True)
    for one in names[1:]:
        found = results(cells, [name for name in names if name != one])
        print(line(found, before, f"without {one}"), flush=True)
    if not names:
        for text in greedy(cells, everything, before):
            print(text, flush=True)


if __name__ == "__main__":
    main()
