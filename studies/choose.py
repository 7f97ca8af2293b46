"""The choices of a study: those whose trials are finished are written."""

from collections.abc import Mapping
from dataclasses import fields
from itertools import product
from statistics import fmean
from typing import Any

from common.errors import UsageError
from common.files import RESULTS_FILE, check_no_link, write_json
from common.records import ImageList
from common.results import RunResult, read_results
from common.version import source

from .planned import Run, Search
from .rules import HELD_OUT, ORACLE, SearchRule, Values, by_key
from .spec import Study


def decide(study: Study) -> list[Search]:
    """Write the file of every choice whose trials are all finished; returns those that wait for
    trials.

    Raises UsageError if results.json of a trial is damaged, or was measured on other images.
    """
    waiting = []
    for search in study.searches:
        if (content := outcome(study, search)) is None:
            waiting.append(search)
            continue
        check_no_link(search.file.parent, study.output)
        search.file.parent.mkdir(parents=True, exist_ok=True)
        write_json(search.file, content | source())
    return waiting


def outcome(study: Study, search: Search) -> dict[str, Any] | None:
    """The content of the file of a choice; None while trials are missing."""
    accuracies = {}
    lists = {}  # of images, each once
    for values, runs in search.trials.items():
        measured = []
        for run in runs:
            results = read_results(run.folder)
            if results is None:
                return None
            record = chosen_on(study.choose, run, results)
            lists[record["dataset"], record["sha256"]] = record
            measured.append(results.accuracy)
        accuracies[values] = fmean(measured)
    return choice_of(study.choose.by, accuracies, list(lists.values()))


def choice_of(by: str, accuracies: dict[Values, float], lists: list[dict]) -> dict[str, Any]:
    """The record of the best values, by the mean accuracies on lists of images."""
    settings = by_key(best(accuracies))
    choices = [
        {"what": key, **record, "trials": len(accuracies)}
        for key, record in product(settings, lists)
    ]
    means = [by_key(values) | {"accuracy": mean} for values, mean in accuracies.items()]
    return {"by": by, "settings": settings, "choices": choices, "accuracies": means}


def best(accuracies: Mapping[Any, float]) -> Any:
    """The key of the largest accuracy; of several that are equal to six digits, the first."""
    return max(accuracies, key=lambda key: round(accuracies[key], 6))


def chosen_on(choose: SearchRule, run: Run, results: RunResult) -> dict[str, Any]:
    """The record of the images on which a trial was tested, as one of a choice (`data_use`)."""
    test = results.card.test
    if test is None or test.split != choose.rule.split:
        fault = (
            f"{run.folder / RESULTS_FILE} does not say that it was tested on "
            f"{choose.rule.split} images"
        )
        raise UsageError(fault, "delete it and start its run again", run.folder / RESULTS_FILE)
    images: dict[str, Any] = {field.name: getattr(test, field.name) for field in fields(ImageList)}
    images |= {"split": "train"} if choose.by == HELD_OUT else {}
    return images | {"test_images": test.images if choose.by == ORACLE else 0, "by": choose.by}
