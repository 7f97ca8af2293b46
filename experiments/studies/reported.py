"""The figures of the paper (Huang et al., ICASSP 2025, Tables II and III), to compare a study's with."""

import json
import math
from collections.abc import Collection
from pathlib import Path

from .spec import Variant

# Top-1 accuracy in percent: protocol -> part -> method -> dataset or `average`.
FIGURES = json.loads(Path(__file__).with_name("paper_tables.json").read_text())
BACKBONE, SHOTS = "ViT-B/16", 16


def reported(protocol: str, part: str, variant: Variant, dataset: str, averaged: Collection[str]) -> float:
    """The paper's accuracy of a method; NaN if the paper has none.

    Args:
        dataset: name of a YAML file in configs/datasets/, or `average`.
        averaged: the datasets that the study averages over; another set has no figure to compare with.
    """
    figures = FIGURES.get(protocol, {}).get(part, {}).get(variant.method, {})
    if variant.overrides or (dataset == "average" and {*averaged, "average"} != figures.keys()):
        return math.nan
    return figures.get(dataset, math.nan)
