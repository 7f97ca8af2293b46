"""Advice for people who label: how good the classifier is, how many points more labels should add,
and when to stop.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ..read_images import ASKED
from ..result import MORE, expected
from .label_file import Line, is_open

NO_ESTIMATE = "NO ESTIMATE"  # a note of a fit
LEAST_GAIN = 1.0  # points of MORE labels, below which they are not worth it


def advice(record: Mapping[str, Any], lines: Sequence[Line]) -> list[str]:
    """Sentences for people.

    Args:
        record: the content of fit.json.
        lines: of the CSV file.
    """
    estimate = record.get("estimate")
    if not record.get("finished"):
        return []
    if not estimate:
        return [note for note in record["notes"] if note.startswith(NO_ESTIMATE)]
    labels = len(record["images"])
    said = [
        f"Estimate after {labels:,} labels: {estimate['accuracy']:.1f}% of new images right "
        f"(95%: {estimate['low']:.1f} to {estimate['high']:.1f}); "
        f"{record['zero_shot']:.1f}% without labels."
    ]
    drawn = [line for line in lines if line["asked"] == ASKED[1] and not is_open(line)]
    without = sum(not line["label"].strip() for line in drawn)
    if without:
        said.append(
            f"{without:,} of {len(drawn):,} images drawn at random have no label: the estimate is "
            "of images like the others."
        )
    return said + forecast(estimate, len(record["names"]), record["of_class"], labels)


def forecast(
    estimate: Mapping[str, float], classes: int, of_class: float, labels: int
) -> list[str]:
    """`expected` for people."""
    if estimate["accuracy"] <= 100 / classes:
        return ["So far this is not better than guessing: the gain from more labels is not known."]
    added, after = expected(estimate, classes, of_class, labels)
    before = estimate["high"] - estimate["low"]
    said = (
        f"The next {MORE} labels should add about {added:.1f} points; the interval, now "
        f"{before:.0f} points wide, should be {after:.0f} wide."
    )
    if added >= LEAST_GAIN:
        return [said, "More labels pay."]
    return [said, "You can stop here, unless you need a narrower interval."]
