"""The choices of a study, by its trials."""

import json
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from common.errors import UsageError
from common.files import check_no_link, write_text

from ..results import FILE, read_results
from .choose import HELD_OUT, ORACLE, Choose, Values
from .spec import Run, Search, Study


def decide(study: Study) -> list[Search]:
    """Write the file of every choice whose trials are all finished.

    Returns:
        the choices that wait for trials.

    Raises:
        UsageError: results.json of a trial is damaged, or was measured on other images.
    """
    waiting = []
    for search in study.searches:
        if (content := outcome(study, search)) is None:
            waiting.append(search)
            continue
        check_no_link(search.file.parent, study.output)
        search.file.parent.mkdir(parents=True, exist_ok=True)
        write_text(search.file, json.dumps(content, indent=1) + "\n")
    return waiting


def outcome(study: Study, search: Search) -> dict[str, Any] | None:
    """The content of the file of a choice; None while trials are missing."""
    accuracies, records = {}, []
    for values, runs in search.trials.items():
        results = {run: read_results(run.folder) for run in runs}
        if not all(results.values()):
            return None
        accuracies[values] = fmean(each["accuracy"] for each in results.values() if each)
        records += [chosen_on(study.choose, run, each) for run, each in results.items() if each]
    lists = list({(record["dataset"], record["sha256"]): record for record in records}.values())
    settings, trials = by_key(best(accuracies)), {"trials": len(accuracies)}
    return {
        "by": study.choose.by,
        "settings": settings,
        "choices": [{"what": key, **record, **trials} for key in settings for record in lists],
        "accuracies": [by_key(values) | {"accuracy": mean} for values, mean in accuracies.items()],
    }


def best(accuracies: Mapping[Any, float]) -> Any:
    """The key of the largest accuracy; of several that are equal to six digits, the first."""
    return max(accuracies, key=lambda key: round(accuracies[key], 6))


def by_key(values: Values) -> dict[str, str]:
    return dict(zip(values[::2], values[1::2], strict=True))


def chosen_on(choose: Choose, run: Run, results: dict) -> dict[str, Any]:
    """The record of the images on which a trial was tested, as one of a choice (`data_use`)."""
    record = (results.get("data_use") or {}).get("test") or {}
    if record.get("split") != choose.rule.split:
        what = f"{run.folder / FILE} does not say that it was tested on {choose.rule.split} images"
        raise UsageError(what, "delete it and start its run again", run.folder / FILE)
    images = {key: record[key] for key in ("dataset", "classes", "split", "images", "sha256")}
    images |= {"split": "train"} if choose.by == HELD_OUT else {}
    return images | {"test_images": record["images"] if choose.by == ORACLE else 0, "by": choose.by}
