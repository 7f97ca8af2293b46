"""Runs that learn nothing have the same results under every seed: they are evaluated once."""

import json
from collections.abc import Iterable
from dataclasses import replace

from common.files import write_text

from ..arguments import parse_arguments
from ..configuration import setup_cfg
from ..lock import locked
from ..output_folder import CONFIG, check_same_settings
from ..results import FILE, read_results
from .spec import Run, RunSequence
from .worker import ERROR, record_error


def evaluated_once(sequences: Iterable[RunSequence]) -> list[RunSequence]:
    """The sequences, those of a method that learns nothing as one: its runs, and then those under other seeds."""
    merged: dict[object, RunSequence] = {}
    for sequence in sequences:
        first = sequence[0]
        if any(run.variant.learns for run in sequence):
            merged[first.folder] = sequence
            continue
        same = first.protocol, first.variant, first.dataset, first.shots, first.classes
        leader = merged.setdefault(same, ())
        if leader:
            sequence = tuple(replace(run, same_as=of) for run, of in zip(sequence, leader, strict=False))
        merged[same] = leader + sequence
    return list(merged.values())


def adopt(run: Run, same: Run) -> str | None:
    """Give a run the results of another one, which differs from it by the seed alone.

    Returns:
        None, or its error in one line, as `execute_run`.
    """
    try:
        cfg, of = (setup_cfg(parse_arguments(list(each.arguments))) for each in (run, same))
        check_same_settings(of, finished=True)
        results = (read_results(same.folder) or {}) | {"seed": cfg.SEED, "evaluated_in": str(same.folder)}
        with locked(run.folder, wait=True):
            write_text(run.folder / CONFIG, cfg.dump())
            write_text(run.folder / FILE, json.dumps(results, indent=1) + "\n")
            (run.folder / ERROR).unlink(missing_ok=True)
    except Exception as error:  # noqa: BLE001 - no error of a run stops the others
        return record_error(run.folder, error)
    return None
