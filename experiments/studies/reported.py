"""What the paper reports (Huang et al., ICASSP 2025, Tables II and III), beside what a study finds."""

import json
import math
from collections.abc import Collection
from pathlib import Path

from .spec import Variant

# Top-1 accuracy in percent: protocol -> part -> method -> dataset, `average` among them.
FIGURES = json.loads(Path(__file__).with_name("paper_tables.json").read_text())
BACKBONE, SHOTS = "ViT-B/16", 16


def reported(protocol: str, part: str, variant: Variant, dataset: str, averaged: Collection[str]) -> float:
    """The paper's accuracy of a method; NaN where it has none.

    Args:
        dataset: name of a YAML in configs/datasets/, or `average`, which is comparable over the same datasets only.
        averaged: the datasets that the study averages over.
    """
    figures = FIGURES.get(protocol, {}).get(part, {}).get(variant.method, {})
    if variant.overrides or (dataset == "average" and {*averaged, "average"} != figures.keys()):
        return math.nan
    return figures.get(dataset, math.nan)
