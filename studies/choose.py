"""The key `choose` of a study: which settings are tried with which values, which images choose, and
the choices.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from common.errors import UsageError, check_name
from common.files import check_no_link, write_text
from measures.results import RESULTS_FILE, read_results

if TYPE_CHECKING:
    from .spec import Run, Search, Study
    from .variant import Variant

Values = tuple[str, ...]  # KEY, VALUE, KEY, VALUE, ... of a trial
Keys = tuple[tuple[str, tuple[str, ...]], ...]  # each key with its values


@dataclass(frozen=True)
class Rule:
    """How trials are tested."""

    place: str  # folder of the trials below OUTPUT/trials
    settings: Values = ()  # KEY, VALUE, ... of a trial
    split: str = "test"  # of the images that choose, as results.json has it


VALIDATION = "few-shot validation"
HELD_OUT = "hold one shot out"
LEAVE_ONE_OUT = "leave one dataset out"
ORACLE = "oracle"
RULES = {
    VALIDATION: Rule("val", ("TEST.SPLIT", "val"), "val"),
    HELD_OUT: Rule("held_out", ("DATASET.HOLD_OUT", "True", "TEST.SPLIT", "val"), "val"),
    LEAVE_ONE_OUT: Rule("test"),
    ORACLE: Rule("test"),
}
ACCEPTED: Values = ("TEST.SELECT_ON_TEST", "True")  # of runs whose settings test images have chosen
SET_BY_CHOOSE = ("TEST.SPLIT", "DATASET.HOLD_OUT")  # also by being left as they are
LONGEST = 120  # characters of a folder's name


@dataclass(frozen=True)
class SearchRule:
    """A choice of settings by trials."""

    by: str = ""  # a key of RULES; empty: all settings are given
    keys: Keys = ()  # for all methods that learn, unless they have keys of their own

    @property
    def rule(self) -> Rule:
        return RULES[self.by]


def choose_from(content: Any) -> SearchRule:
    """A `SearchRule` from `{keys: {KEY: [VALUE, ...]}, by: RULE}`. Raises UsageError if it has
    another form.
    """
    if not isinstance(content, dict):
        raise UsageError(
            f"choose is {content!r}", f"give {{keys: {{KEY: [VALUE, ...]}}, by: {VALIDATION}}}"
        )
    for key in content:
        check_name(key, ("keys", "by"), "key of choose")
    if content.get("by") is None:
        raise UsageError("choose has no by", f"give one of {', '.join(RULES)}")
    check_name(content["by"], RULES, "rule of choose")
    keys = keys_from(content["keys"], "choose") if "keys" in content else ()
    if "keys" in content and not keys:
        raise UsageError(
            "choose has no keys", "give some, such as {OPTIM.LR: [0.001, 0.002]}, or leave keys out"
        )
    return SearchRule(content["by"], keys)


def mapping(value: Any, what: str, form: str) -> dict:
    if not isinstance(value, dict):
        raise UsageError(f"{what} must be a mapping of {form}, not {value!r}")
    return value


def keys_from(content: Any, what: str) -> Keys:
    """Keys and their values from `{KEY: [VALUE, ...]}`; UsageError if a key has fewer than two
    values.
    """
    keys = {}
    for key, values in mapping(content, f"the keys of {what}", "KEY: [VALUE, ...]").items():
        words = tuple(map(str, values)) if isinstance(values, list) else ()
        if len(words) < 2 or len(set(map(as_number, words))) < len(words):
            raise UsageError(
                f"{what} has the values {values!r} for {key}",
                "give a list of two or more different ones",
            )
        keys[str(key)] = words
    return tuple(keys.items())


def as_number(word: str) -> float | str:
    """A word that is a number as that number, so that 0.1 and "0.10" are one value."""
    try:
        return float(word)
    except ValueError:
        return word


def check_choose(study: "Study") -> None:
    """Raise UsageError if a choice of a study has nothing to choose from, or no images to choose
    on.
    """
    if not study.choose.by:
        for variant in study.variants:
            if variant.choose:
                raise UsageError(
                    f"{variant.name} has choose", f"say by what: choose: {{by: {VALIDATION}}}"
                )
        return
    if not any(map(study.keys_of, study.variants)):
        raise UsageError(
            "choose has nothing to choose from", "give keys, such as {OPTIM.LR: [0.001, 0.002]}"
        )
    for variant in study.variants:
        check_keys(study, variant)
    if (
        study.choose.by == HELD_OUT
        and (shots := min(min(study.shots_of(name)) for name in study.protocols)) < 2
    ):
        raise UsageError(
            f"{HELD_OUT} leaves nothing of {shots} shot to train on", "give shots from 2 on"
        )
    if study.choose.by == LEAVE_ONE_OUT:
        for protocol in study.protocols:
            if len(names := study.trained_on(protocol)) < 2:
                what = f"{LEAVE_ONE_OUT} has no other dataset than {names[0]} in {protocol}"
                raise UsageError(what, f"give several datasets, or choose by {VALIDATION}")


def check_keys(study: "Study", variant: "Variant") -> None:
    """Check that the method has the keys to try, and that nothing else in the study sets them."""
    elsewhere = {
        *chain(*(pairs[::2] for pairs in (variant.overrides, *variant.dataset_overrides.values())))
    }
    if study.keys_of(variant) and (both := sorted(elsewhere.intersection(SET_BY_CHOOSE))):
        raise UsageError(
            f"{variant.name} has {both[0]}, which choose sets", "leave one of them out"
        )
    by_study = {"MODEL.BACKBONE.NAME": study.backbone, "CACHE": study.cache, "TEST.OOD": study.ood}
    elsewhere |= {*SET_BY_CHOOSE, ACCEPTED[0], *(key for key, value in by_study.items() if value)}
    for key, _ in study.keys_of(variant):
        variant.check_key(key, "choose")
        if key in elsewhere:
            raise UsageError(
                f"{variant.name} cannot choose {key}, which the study sets", "leave one of them out"
            )


def trial_place(rule: Rule, values: Values) -> Path:
    """The folder of the trials of these values, below that of the results. It does not depend on
    other values.
    """
    name = ",".join(f"{key}={quote(value, safe='')}" for key, value in by_key(values).items())
    name = name if len(name) <= LONGEST else digest(values)
    return Path("trials", rule.place, name)


def chosen_place(study: "Study", variant: "Variant", protocol: str) -> Path:
    """The folder of the runs with chosen settings, below that of the results. Its name has a
    checksum of all that the choice depends on: another choice has another folder."""
    by = study.choose.by
    seeds = sorted(study.seeds)
    others = sorted(study.trained_on(protocol)) if by == LEAVE_ONE_OUT else []
    return Path(
        "chosen", f"{by.replace(' ', '_')}_{digest([by, study.keys_of(variant), seeds, others])}"
    )


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def decide(study: "Study") -> "list[Search]":
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
        write_text(search.file, json.dumps(content, indent=1) + "\n")
    return waiting


def outcome(study: "Study", search: "Search") -> dict[str, Any] | None:
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
            measured.append(results["accuracy"])
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


def by_key(values: Values) -> dict[str, str]:
    return dict(zip(values[::2], values[1::2], strict=True))


def chosen_on(choose: SearchRule, run: "Run", results: dict) -> dict[str, Any]:
    """The record of the images on which a trial was tested, as one of a choice (`data_use`)."""
    record = (results.get("data_use") or {}).get("test") or {}
    if record.get("split") != choose.rule.split:
        what = (
            f"{run.folder / RESULTS_FILE} does not say that it was tested on "
            f"{choose.rule.split} images"
        )
        raise UsageError(what, "delete it and start its run again", run.folder / RESULTS_FILE)
    images = {key: record[key] for key in ("dataset", "classes", "split", "images", "sha256")}
    images |= {"split": "train"} if choose.by == HELD_OUT else {}
    return images | {"test_images": record["images"] if choose.by == ORACLE else 0, "by": choose.by}
