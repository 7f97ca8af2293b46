"""The content of a study file: protocols, variants of methods, choices of settings; its checks."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from common.errors import UsageError, check_dataset_name, check_name
from common.schema import FLAG, Accepts, shown
from configs.files import config_names, known_datasets
from configs.methods import check_method, methods

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


SET_BY_STUDY = {  # settings that no variant overrides, and the key of a study file that sets each
    "TRAINER.NAME": "trainer",
    "OUTPUT_DIR": "output",
    "SEED": "seeds",
    "DATASET.NAME": "datasets",
    "DATASET.ROOT": "root",
    "DATASET.NUM_SHOTS": "shots",
    "DATASET.SUBSAMPLE_CLASSES": "protocols",
}


@dataclass(frozen=True)
class Variant:
    """A method, the YAML file that it uses, and settings that override it.

    Raises UsageError if there is no such method, YAML file or dataset, or the method has no such
    setting.
    """

    name: str  # its name in tables and plots
    method: str  # name of the trainer
    # Name of a YAML file in configs/trainers/<method>/; empty: that of the recipe for the protocol
    cfg: str = ""
    cross_cfg: str = ""  # the YAML file for cross_dataset, if it differs
    overrides: tuple[str, ...] = ()  # KEY, VALUE, KEY, VALUE, ...
    # For single datasets
    dataset_overrides: dict[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    over: str = ""  # the name of the variant whose answers it reads
    choose: Keys | None = None  # the settings to try, instead of those of the study; empty: none

    def __post_init__(self) -> None:
        check_method(self.method, methods(), kind="trainer")
        plain = self.name.strip() and self.name.isprintable()
        # It may be part of a folder's name, and legends leave out what begins with an underscore.
        if not plain or "/" in self.name or self.name.startswith((".", "_")):
            fault = (
                f"the name {self.name!r} is empty, has a slash or an unprintable letter, or "
                "starts with . or _"
            )
            raise UsageError(fault, "use another one")
        names = config_names(self.method)
        for config in filter(None, (self.cfg, self.cross_cfg)):
            check_name(config, names, f"YAML file of {self.name}")
        for dataset in self.dataset_overrides:
            check_dataset_name(dataset, known_datasets())
        for pairs in self.all_overrides:
            for key in by_key(pairs):
                self.check_key(key, "override")

    @property
    def all_overrides(self) -> list[Values]:
        """Those of all datasets, and of single ones."""
        return [self.overrides, *self.dataset_overrides.values()]

    @property
    def overridden(self) -> set[str]:
        """The keys."""
        return {key for pairs in self.all_overrides for key in by_key(pairs)}

    def check_key(self, key: str, verb: str) -> None:
        """UsageError if the study sets the key by one of its own, or the method has no such
        section.
        """
        group, _, rest = key.partition(".")
        if key in SET_BY_STUDY:
            raise UsageError(
                f"{self.name} cannot {verb} {key}", f"use the study's own key {SET_BY_STUDY[key]}"
            )
        if group == "TRAINER" and rest.split(".")[0] not in self.facts.sections():
            raise UsageError(
                f"{self.name} cannot {verb} {key}",
                f"{self.method} has TRAINER.{self.facts.section()}.*",
            )

    @cached_property
    def facts(self) -> Any:
        return methods()[self.method]

    @property
    def kind(self) -> str:
        """The kind of the method (`Method.kind`), or `extra text` if a setting adds sentences for
        classes.
        """
        extra = self.facts.kind == "inductive" and "DATASET.SENTENCES" in self.overridden
        return "extra text" if extra else self.facts.kind


# In the order of the papers' tables
ELEVEN = (
    "imagenet",
    "caltech101",
    "oxford_pets",
    "stanford_cars",
    "oxford_flowers",
    "food101",
    "fgvc_aircraft",
    "sun397",
    "dtd",
    "eurosat",
    "ucf101",
)


@dataclass(frozen=True)
class Step:
    """One run of a protocol."""

    classes: str  # `base`, `new` or `all`: DATASET.SUBSAMPLE_CLASSES
    folder: str  # with {dataset}, {name} (METHOD/CFG), {shots} and {seed}
    optional: bool = False  # only run if it is asked for


@dataclass(frozen=True)
class Protocol:
    """A training run, which also tests its prompts on its own classes; then tests on other classes
    or datasets.
    """

    steps: tuple[Step, ...]
    shots: tuple[int, ...] = (16,)  # images of each class


SEEDS = (1, 2, 3)  # of most papers; MPL's has six
BASE2NEW = "base2new/{part}/{{dataset}}/shots_{{shots}}/{{name}}/seed{{seed}}"
FEW_SHOT = "{dataset}/{name}_{shots}shots/seed{seed}"
# CoCoOp's: trained on the first half of the classes
HALVES = (
    Step("base", BASE2NEW.format(part="train_base")),
    Step("new", BASE2NEW.format(part="test_new")),
    # Base and new classes together
    Step("all", BASE2NEW.format(part="test_all"), optional=True),
)
# Trained on a source dataset
CROSS_DATASET = (
    Step("all", f"crossdataset/{FEW_SHOT}"),
    Step("all", f"crossdataset/evaluation/{FEW_SHOT}"),
)
PROTOCOLS = {
    "base2new": Protocol(HALVES),
    "cross_dataset": Protocol(CROSS_DATASET),
    "few_shot": Protocol((Step("all", FEW_SHOT),), shots=(1, 2, 4, 8, 16)),  # CoOp's
}


VALUES = {
    "seeds": Accepts(list[int], 0, 2**32 - 1),
    "shots": Accepts(list[int], 1),
    "cpus": Accepts(int, 1, 1024),
}
VALUES |= {"gpus": Accepts(int | float, 0, 1), "union": FLAG, "calibrate": FLAG}  # of a study


@dataclass(frozen=True)
class StudyKeys:
    """The keys of a study file, which docs/studies.md explains; `variants` are its trainers.

    Raises UsageError if a value is unknown, missing or out of range.
    """

    variants: tuple[Variant, ...]
    datasets: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ("base2new",)
    seeds: tuple[int, ...] = SEEDS
    source: str = ""
    targets: tuple[str, ...] = ()
    shots: tuple[int, ...] = (16,)
    union: bool = False
    calibrate: bool = False
    ood: tuple[str, ...] = ()
    choose: SearchRule = SearchRule()
    backbone: str = ""
    cache: Path | None = None
    cpus: int = 1
    gpus: float | None = None
    root: Path = Path("data")
    output: Path = Path("output")

    def __post_init__(self) -> None:
        for key, accepts in VALUES.items():
            value = getattr(self, key)
            if not accepts.accepts(value) and (key, value) != ("gpus", None):
                raise UsageError(f"{key} has the value {shown(value)}", f"give {accepts}")
        self.check_names()
        self.check_protocols()
        self.check_choose()

    def check_names(self) -> None:
        """Check that the lists are not empty, and that what they name exists."""
        for key in ("variants", "protocols", "seeds", "shots"):
            if not getattr(self, key):
                name = "trainers" if key == "variants" else key
                raise UsageError(f"the study has no {name}", "see studies/small.yaml")
        for protocol in self.protocols:
            check_name(protocol, PROTOCOLS, "protocol")
        for dataset in (*self.datasets, *self.targets, *filter(None, [self.source])):
            check_dataset_name(dataset, known_datasets())
        for name in self.ood:
            check_name(name, [*known_datasets(), "new"], "dataset of ood")
        learning = [variant.name for variant in self.variants if variant.facts.learns]
        for variant in self.variants:
            if variant.over and variant.over not in learning:
                fault = f"{variant.name} reads the answers of {variant.over}"
                raise UsageError(f"{fault}, which is not a trainer that learns here", "add it")

    def check_protocols(self) -> None:
        """Check that the protocols have what they need, and fit the other keys."""
        base2new = "base2new" in self.protocols
        crossing = "cross_dataset" in self.protocols
        names = [variant.name for variant in self.variants if not variant.facts.transfers]
        if base2new and names:
            fault = (
                f"base2new has no meaning for {', '.join(names)}, which cannot tell classes "
                "that it has not learned"
            )
            raise UsageError(fault, "leave it out, or use few_shot")
        if not self.datasets and self.protocols != ("cross_dataset",):
            raise UsageError("the study has no datasets", "see studies/small.yaml")
        if crossing and not (self.source and self.tested_on):
            raise UsageError("cross_dataset needs a source, such as imagenet, and targets")
        if self.source in self.targets:
            fault = f"the source {self.source} is among the targets"
            raise UsageError(fault, "leave it out of them")
        if self.union and not base2new:
            raise UsageError("union has the value True", "give it with base2new, or leave it out")
        if "new" in self.ood and self.protocols != ("base2new",):
            raise UsageError("ood has new, which needs base classes", "use it with base2new alone")
        if self.ood and crossing:
            raise UsageError("no table of cross_dataset shows ood", "leave one of them out")

    def check_choose(self) -> None:
        """Check that a choice has settings to choose from, and images to choose on."""
        if not self.choose.by:
            for variant in self.variants:
                if variant.choose:
                    remedy = f"say by what: choose: {{by: {VALIDATION}}}"
                    raise UsageError(f"{variant.name} has choose", remedy)
            return
        if not any(map(self.keys_of, self.variants)):
            raise UsageError(
                "choose has nothing to choose from", "give keys, such as {OPTIM.LR: [0.001, 0.002]}"
            )
        for variant in self.variants:
            self.check_keys(variant)
        shots = min(min(self.shots_of(name)) for name in self.protocols)
        if self.choose.by == HELD_OUT and shots < 2:
            fault = f"{HELD_OUT} leaves nothing of {shots} shot to train on"
            raise UsageError(fault, "give shots from 2 on")
        if self.choose.by == LEAVE_ONE_OUT:
            for protocol in self.protocols:
                names = self.trained_on(protocol)
                if len(names) < 2:
                    fault = f"{LEAVE_ONE_OUT} has no other dataset than {names[0]} in {protocol}"
                    raise UsageError(fault, f"give several datasets, or choose by {VALIDATION}")

    def check_keys(self, variant: Variant) -> None:
        """Check that a method has the keys to try, and that nothing else in the study sets them."""
        elsewhere = variant.overridden
        both = sorted(elsewhere.intersection(SET_BY_CHOOSE))
        if both and self.keys_of(variant):
            fault = f"{variant.name} has {both[0]}, which choose sets"
            raise UsageError(fault, "leave one of them out")
        own = {"MODEL.BACKBONE.NAME": self.backbone, "CACHE": self.cache, "TEST.OOD": self.ood}
        elsewhere |= {key for key, value in own.items() if value}
        elsewhere |= {*SET_BY_CHOOSE, ACCEPTED[0]}
        for key, _ in self.keys_of(variant):
            variant.check_key(key, "choose")
            if key in elsewhere:
                fault = f"{variant.name} cannot choose {key}, which the study sets"
                raise UsageError(fault, "leave one of them out")

    @property
    def tested_on(self) -> tuple[str, ...]:
        """The datasets on which cross_dataset tests its prompts."""
        return self.targets

    def trained_on(self, protocol: str) -> tuple[str, ...]:
        return (self.source,) if protocol == "cross_dataset" else self.datasets

    def shots_of(self, protocol: str) -> tuple[int, ...]:
        return self.shots if protocol == "few_shot" else self.shots[-1:]

    def keys_of(self, variant: Variant) -> Keys:
        """The settings that trials choose for a variant; none if they are given."""
        if variant.choose is not None:
            return variant.choose
        return self.choose.keys if variant.facts.learns else ()
