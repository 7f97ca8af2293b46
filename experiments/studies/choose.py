"""The key `choose` of a study: which settings are tried with which values, and which images choose."""

import hashlib
import json
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from common.errors import UsageError, choose

if TYPE_CHECKING:
    from .spec import Study, Variant

Values = tuple[str, ...]  # KEY, VALUE, KEY, VALUE, ... of a trial
Keys = tuple[tuple[str, tuple[str, ...]], ...]  # each key with its values


@dataclass(frozen=True)
class Rule:
    """How trials are tested.

    Attributes:
        place: folder of the trials below OUTPUT/trials.
        settings: KEY, VALUE, ... of a trial.
        split: of the images that choose, as results.json has it.
    """

    place: str
    settings: Values = ()
    split: str = "test"


VALIDATION, HELD_OUT, OTHERS, ORACLE = "few-shot validation", "hold one shot out", "leave one dataset out", "oracle"
RULES = {
    VALIDATION: Rule("val", ("TEST.SPLIT", "val"), "val"),
    HELD_OUT: Rule("held_out", ("DATASET.HOLD_OUT", "True", "TEST.SPLIT", "val"), "val"),
    OTHERS: Rule("test"),
    ORACLE: Rule("test"),
}
ACCEPTED: Values = ("TEST.SELECT_ON_TEST", "True")  # of runs whose settings test images have chosen
SET_BY_CHOOSE = ("TEST.SPLIT", "DATASET.HOLD_OUT", "TEST.NO_TEST")  # also by being left as they are
LONGEST = 120  # characters of a folder's name


@dataclass(frozen=True)
class Choose:
    """A choice of settings by trials.

    Attributes:
        by: a key of RULES; empty: all settings are given.
        keys: for all methods that learn, unless they have keys of their own.
    """

    by: str = ""
    keys: Keys = ()

    @property
    def rule(self) -> Rule:
        return RULES[self.by]


def choose_from(content: Any) -> Choose:
    """A `Choose` from `{keys: {KEY: [VALUE, ...]}, by: RULE}`.

    Raises:
        UsageError: it has another form.
    """
    if not isinstance(content, dict):
        raise UsageError(f"choose is {content!r}", f"give {{keys: {{KEY: [VALUE, ...]}}, by: {VALIDATION}}}")
    for key in content:
        choose(key, ("keys", "by"), "key of choose")
    if content.get("by") is None:
        raise UsageError("choose has no by", f"give one of {', '.join(RULES)}")
    choose(content["by"], RULES, "rule of choose")
    keys = keys_from(content["keys"], "choose") if "keys" in content else ()
    if "keys" in content and not keys:
        raise UsageError("choose has no keys", "give some, such as {OPTIM.LR: [0.001, 0.002]}, or leave keys out")
    return Choose(content["by"], keys)


def mapping(value: Any, what: str, form: str) -> dict:
    if not isinstance(value, dict):
        raise UsageError(f"{what} must be a mapping of {form}, not {value!r}")
    return value


def keys_from(content: Any, what: str) -> Keys:
    """Keys and their values from `{KEY: [VALUE, ...]}`; UsageError if a key has fewer than two values."""
    found = {}
    for key, values in mapping(content, f"the keys of {what}", "KEY: [VALUE, ...]").items():
        words = tuple(map(str, values)) if isinstance(values, list) else ()
        if len(words) < 2 or len(set(words)) < len(words):
            raise UsageError(f"{what} has the values {values!r} for {key}", "give a list of two or more different ones")
        found[str(key)] = words
    return tuple(found.items())


def check_choose(study: "Study") -> None:
    """Check that each choice of a study has something to choose from, and images to choose on.

    Raises:
        UsageError: it has not.
    """
    if not study.choose.by:
        for variant in study.variants:
            if variant.choose:
                raise UsageError(f"{variant.name} has choose", f"say by what: choose: {{by: {VALIDATION}}}")
        return
    if not any(map(study.keys_of, study.variants)):
        raise UsageError("choose has nothing to choose from", "give keys, such as {OPTIM.LR: [0.001, 0.002]}")
    for variant in study.variants:
        check_keys(study, variant)
    if study.choose.by == HELD_OUT and (shots := min(min(study.shots_of(name)) for name in study.protocols)) < 2:
        raise UsageError(f"{HELD_OUT} leaves nothing of {shots} shot to train on", "give shots from 2 on")
    if study.choose.by == OTHERS:
        for protocol in study.protocols:
            if len(names := study.trained_on(protocol)) < 2:
                what = f"{OTHERS} has no other dataset than {names[0]} in {protocol}"
                raise UsageError(what, f"give several datasets, or choose by {VALIDATION}")


def check_keys(study: "Study", variant: "Variant") -> None:
    """Check that the method has the keys to try, and that nothing else in the study sets them."""
    elsewhere = {*chain(*(pairs[::2] for pairs in (variant.overrides, *variant.dataset_overrides.values())))}
    if study.keys_of(variant) and (both := sorted(elsewhere.intersection(SET_BY_CHOOSE))):
        raise UsageError(f"{variant.name} has {both[0]}, which choose sets", "leave one of them out")
    elsewhere |= {*SET_BY_CHOOSE, ACCEPTED[0]}
    elsewhere |= {"MODEL.BACKBONE.NAME"} if study.backbone else set()
    elsewhere |= {"CACHE", "DATALOADER.CACHE_TEST"} if study.cache else set()
    elsewhere |= {"TEST.OOD"} if study.ood else set()
    for key, _ in study.keys_of(variant):
        variant.check_key(key, "choose")
        if key in elsewhere:
            raise UsageError(f"{variant.name} cannot choose {key}, which the study sets", "leave one of them out")


def trial_place(rule: Rule, values: Values) -> Path:
    """The folder of the trials of these values, below that of the results. It does not depend on other values."""
    pairs = zip(values[::2], values[1::2], strict=True)
    name = ",".join(f"{key}={quote(value, safe='')}" for key, value in pairs)
    name = name if len(name) <= LONGEST else digest(values)
    return Path("trials", rule.place, name)


def chosen_place(study: "Study", variant: "Variant", protocol: str) -> Path:
    """The folder of the runs with chosen settings, below that of the results. Its name has a checksum of all that the
    choice depends on: another choice has another folder."""
    by, seeds = study.choose.by, sorted(study.seeds)
    others = sorted(study.trained_on(protocol)) if by == OTHERS else []
    return Path("chosen", f"{by.replace(' ', '_')}_{digest([by, study.keys_of(variant), seeds, others])}")


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]
