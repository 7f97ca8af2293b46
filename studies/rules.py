"""The key `choose` of a study: which settings are tried with which values, and which images
choose.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from common.errors import UsageError, check_name

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


def mapping(value: Any, name: str, form: str) -> dict:
    if not isinstance(value, dict):
        raise UsageError(f"{name} must be a mapping of {form}, not {value!r}")
    return value


def keys_from(content: Any, name: str) -> Keys:
    """Keys and their values from `{KEY: [VALUE, ...]}`; UsageError if a key has fewer than two
    values.
    """
    keys = {}
    for key, values in mapping(content, f"the keys of {name}", "KEY: [VALUE, ...]").items():
        words = tuple(map(str, values)) if isinstance(values, list) else ()
        if len(words) < 2 or len(set(map(as_number, words))) < len(words):
            raise UsageError(
                f"{name} has the values {values!r} for {key}",
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


def trial_place(rule: Rule, values: Values) -> Path:
    """The folder of the trials of these values, below that of the results. It does not depend on
    other values.
    """
    name = ",".join(f"{key}={quote(value, safe='')}" for key, value in by_key(values).items())
    name = name if len(name) <= LONGEST else digest(values)
    return Path("trials", rule.place, name)


def chosen_place(by: str, keys: Keys, seeds: Sequence[int], others: Sequence[str]) -> Path:
    """The folder of the runs with chosen settings, below that of the results. Its name has a
    checksum of all that the choice depends on: another choice has another folder.

    Args:
        by: a key of RULES.
        keys: with the values that are tried.
        seeds, others: of the trials; `others` are the datasets of `leave one dataset out`.
    """
    content = [by, keys, sorted(seeds), sorted(others)]
    return Path("chosen", f"{by.replace(' ', '_')}_{digest(content)}")


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def by_key(values: Sequence[str]) -> dict[str, str]:
    """The values of KEY, VALUE, KEY, VALUE, ... by their keys."""
    return dict(zip(values[::2], values[1::2], strict=True))
