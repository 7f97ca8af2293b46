"""A study: methods, datasets, seeds and protocols, and the calls of train.py that they add up
to.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, product
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import UsageError, check_dataset_name, check_name
from common.schema import FLAG, Accepts, shown
from configs.files import CONFIGS, config_files, config_folder, known_datasets
from configs.methods import IN_A_FILE, methods, plugin_of
from configs.recipes import Recipe, recipe

from .choose import (
    ACCEPTED,
    LEAVE_ONE_OUT,
    ORACLE,
    Keys,
    SearchRule,
    Values,
    by_key,
    check_choose,
    chosen_place,
    trial_place,
)
from .protocols import PROTOCOLS, Step

SET_BY_STUDY = {  # settings that no variant overrides, and the key of a study file that sets each
    "TRAINER.NAME": "trainer",
    "OUTPUT_DIR": "output",
    "SEED": "seeds",
    "DATASET.NAME": "datasets",
    "DATASET.ROOT": "root",
    "DATASET.NUM_SHOTS": "shots",
    "DATASET.SUBSAMPLE_CLASSES": "protocols",
}

VALUES = {
    "seeds": Accepts(list[int], 0, 2**32 - 1),
    "shots": Accepts(list[int], 1),
    "cpus": Accepts(int, 1, 1024),
}
VALUES |= {"gpus": Accepts(int | float, 0, 1), "union": FLAG, "calibrate": FLAG}  # of a study


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
    choose: Keys | None = None  # the settings to try, instead of those of the study; empty: none

    def __post_init__(self) -> None:
        check_name(self.method, methods(), "trainer", otherwise=IN_A_FILE)
        plain = self.name.strip() and self.name.isprintable()
        # It may be part of a folder's name, and legends leave out what begins with an underscore.
        if not plain or "/" in self.name or self.name.startswith((".", "_")):
            what = (
                f"the name {self.name!r} is empty, has a slash or an unprintable letter, or "
                "starts with . or _"
            )
            raise UsageError(what, "use another one")
        names = [file.stem for file in config_files(self.method)]
        for config in filter(None, (self.cfg, self.cross_cfg)):
            check_name(config, names, f"YAML file of {self.name}")
        for dataset in self.dataset_overrides:
            check_dataset_name(dataset, known_datasets())
        for pairs in (self.overrides, *self.dataset_overrides.values()):
            for key, value in zip(pairs[::2], pairs[1::2], strict=True):
                self.check_key(key, "override", value)

    def check_key(self, key: str, verb: str, value: str = "") -> None:
        """UsageError if the study sets the key by one of its own, or the method has no such
        section.
        """
        group, _, rest = key.partition(".")
        # A list or a file, no number
        by_class = key == "DATASET.NUM_SHOTS" and value.strip("-0123456789")
        if key in SET_BY_STUDY and not by_class:
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
        keys = {
            key
            for pairs in (self.overrides, *self.dataset_overrides.values())
            for key in pairs[::2]
        }
        extra = self.facts.kind == "inductive" and "DATASET.SENTENCES" in keys
        return "extra text" if extra else self.facts.kind


@dataclass(frozen=True)
class Run:
    """One call of train.py: `classes` (`base`, `new` or `all`) of a dataset, with its results in
    `folder`.

    `values` are those that a trial tries: KEY, VALUE, ...
    """

    protocol: str
    variant: Variant
    dataset: str
    seed: int
    shots: int
    classes: str
    folder: Path
    arguments: tuple[str, ...] = field(repr=False)
    values: Values = ()

    @property
    def trains(self) -> bool:
        """Whether it learns prompts, rather than testing those of another run."""
        return "--eval-only" not in self.arguments

    def option(self, name: str) -> str:
        """The value of an option of train.py; empty if the run has none."""
        return self.arguments[self.arguments.index(name) + 1] if name in self.arguments else ""


RunSequence = tuple[Run, ...]  # each run needs the ones before it


class Training(NamedTuple):
    """A training run; a test has that of the run whose prompts it uses."""

    protocol: str
    variant: Variant
    dataset: str
    seed: int
    shots: int


@dataclass(frozen=True)
class Search:
    """The choice of the settings of a variant on a dataset: one for all seeds."""

    protocol: str
    variant: Variant
    dataset: str  # the one to train on
    shots: int
    file: Path  # where the choice is written
    # By the values, runs whose mean accuracy counts; the first win a tie
    trials: dict[Values, tuple[Run, ...]]


@dataclass(frozen=True)
class Study:
    """The runs to compare, the folder of the datasets, and the folder of the results (laid out as
    by the scripts).

    The other attributes are the keys of a study file, which docs/studies.md explains.

    Raises UsageError if a value is unknown, missing or out of range.
    """

    variants: tuple[Variant, ...]
    datasets: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ("base2new",)
    seeds: tuple[int, ...] = (1, 2, 3)
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
        check_choose(self)

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

    def check_protocols(self) -> None:
        """Check that the protocols have what they need, and fit the other keys."""
        base2new = "base2new" in self.protocols
        crossing = "cross_dataset" in self.protocols
        names = [variant.name for variant in self.variants if not variant.facts.transfers]
        if base2new and names:
            what = (
                f"base2new has no meaning for {', '.join(names)}, which cannot tell classes "
                "that it has not learned"
            )
            raise UsageError(what, "leave it out, or use few_shot")
        if not self.datasets and self.protocols != ("cross_dataset",):
            raise UsageError("the study has no datasets", "see studies/small.yaml")
        if crossing and not (self.source and self.tested_on):
            raise UsageError("cross_dataset needs a source, such as imagenet, and targets")
        if self.source in self.targets:
            what = f"the source {self.source} is among the targets"
            raise UsageError(what, "leave it out of them")
        if self.union and not base2new:
            raise UsageError("union has the value True", "give it with base2new, or leave it out")
        if "new" in self.ood and self.protocols != ("base2new",):
            raise UsageError("ood has new, which needs base classes", "use it with base2new alone")
        if self.ood and crossing:
            raise UsageError("no table of cross_dataset shows ood", "leave one of them out")

    def sequences(self) -> list[RunSequence]:
        """All runs, seed by seed, so that early results cover all methods: each training run, then
        its tests.
        """
        return list(self._sequences)

    @cached_property
    def _sequences(self) -> tuple[RunSequence, ...]:
        return tuple(
            sequence for protocol in self.protocols for sequence in self.sequences_of(protocol)
        )

    def sequences_of(self, protocol: str) -> Iterator[RunSequence]:
        train, *tests = PROTOCOLS[protocol].steps
        if not self.union:
            tests = [step for step in tests if not step.optional]
        ood = ("--ood", ",".join(self.ood)) if self.ood else ()
        names = self.trained_on(protocol)
        for seed, dataset, shots, variant in product(
            self.seeds, names, self.shots_of(protocol), self.variants
        ):
            training = Training(protocol, variant, dataset, seed, shots)
            sequence = [self.run(train, dataset, training, *ood)]
            targets = self.tested_on if protocol == "cross_dataset" else (dataset,)
            use = ("--eval-only", "--model-dir", sequence[0].folder)
            for step, target in product(tests, targets):
                sequence.append(self.run(step, target, training, *use))
            yield tuple(sequence)

    def runs(self) -> list[Run]:
        """Those of the comparison, without trials."""
        return [run for sequence in self.sequences() for run in sequence]

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

    @cached_property
    def searches(self) -> list[Search]:
        """The choices to be made before the runs of the comparison."""
        return [search for protocol in self.protocols for search in self.searches_of(protocol)]

    def searches_of(self, protocol: str) -> Iterator[Search]:
        names = self.trained_on(protocol)
        for shots, variant in product(self.shots_of(protocol), self.variants):
            keys = dict(self.keys_of(variant))
            if not keys:
                continue
            every = [
                tuple(chain(*zip(keys, values, strict=True))) for values in product(*keys.values())
            ]
            for name in names:
                choosing = [name]
                if self.choose.by == LEAVE_ONE_OUT:
                    choosing = [other for other in names if other != name]
                trainings = [
                    Training(protocol, variant, other, seed, shots)
                    for other, seed in product(choosing, self.seeds)
                ]
                trials = {
                    values: tuple(self.trial(training, values) for training in trainings)
                    for values in every
                }
                file = self.chosen_file(Training(protocol, variant, name, self.seeds[0], shots))
                yield Search(protocol, variant, name, shots, file, trials)

    def trial(self, training: Training, values: Values) -> Run:
        """The run that tries values."""
        step = PROTOCOLS[training.protocol].steps[0]
        return self.run(step, training.dataset, training, values=values)

    def trials(self) -> list[Run]:
        """The runs that choose, each once."""
        return list(
            dict.fromkeys(
                chain(*(runs for search in self.searches for runs in search.trials.values()))
            )
        )

    def folder(self, step: Step, dataset: str, training: Training) -> Path:
        """The folder of a run, below that of the results: the scripts', unless settings are
        overridden.
        """
        _, variant, _, seed, shots = training
        name = variant.name.replace(" ", "_") if variant.overrides else self.recipe(training).cfg
        return Path(
            step.folder.format(
                dataset=dataset, name=f"{variant.method}/{name}", shots=shots, seed=seed
            )
        )

    @cached_property
    def recipes(self) -> dict[tuple, Recipe]:
        """Those that were asked for: finding one reads a folder, and a study has thousands of
        runs.
        """
        return {}

    def recipe(self, training: Training) -> Recipe:
        protocol, variant, dataset, _, shots = training
        key = protocol, variant, dataset, shots
        if key not in self.recipes:
            cfg = (variant.cross_cfg if protocol == "cross_dataset" else "") or variant.cfg
            self.recipes[key] = recipe(variant.method, protocol, dataset, shots, cfg, self.backbone)
        return self.recipes[key]

    def chosen_file(self, training: Training) -> Path:
        """The file of the settings that were chosen for the dataset of a training run; all seeds
        have the same.
        """
        folder = self.folder(
            PROTOCOLS[training.protocol].steps[0], training.dataset, training
        ).parent
        return (
            self.output
            / chosen_place(self, training.variant, training.protocol)
            / folder
            / "choice.json"
        )

    def run(
        self, step: Step, dataset: str, training: Training, *options, values: Values = ()
    ) -> Run:
        """The run of one step of a protocol on a dataset. Methods that learn nothing get
        --eval-only.

        Args:
            options: of train.py.
            values: of a trial; without them, the run has the chosen settings if there is a choice.
        """
        protocol, variant, _, seed, shots = training
        place = Path()
        if not variant.facts.learns and "--eval-only" not in options:
            options = ("--eval-only", *options)
        if values:
            place = trial_place(self.choose.rule, values)
        elif self.keys_of(variant):
            place = chosen_place(self, variant, protocol)
            options = (*options, "--chosen", self.chosen_file(training))
        folder = self.output / place / self.folder(step, dataset, training)
        words = [*self.options(folder, dataset, training), *options]
        words += ["DATASET.NUM_SHOTS", shots]
        if step.classes != "all":
            words += ["DATASET.SUBSAMPLE_CLASSES", step.classes]
        words += self.settings(dataset, training, values)
        arguments = tuple(map(str, words))
        return Run(protocol, variant, dataset, seed, shots, step.classes, folder, arguments, values)

    def options(self, folder: Path, dataset: str, training: Training) -> list:
        """The options of train.py that every run has, with its results in `folder`."""
        method = training.variant.method
        words: list = ["--skip-finished", "--root", self.root, "--output-dir", folder]
        plugin = plugin_of(method)
        if plugin:
            words += ["--plugin", plugin]
        words += ["--seed", training.seed, "--trainer", method]
        words += ["--dataset-config-file", CONFIGS / f"datasets/{dataset}.yaml"]
        words += ["--config-file", config_folder(method) / f"{self.recipe(training).cfg}.yaml"]
        if self.backbone:
            words += ["--backbone", self.backbone]
        return words

    def settings(self, dataset: str, training: Training, values: Values) -> list:
        """KEY, VALUE, ... of a run; the last one of a key counts."""
        variant = training.variant
        words: list = []
        if self.cache:
            words += ["CACHE", self.cache]
        if self.calibrate and not values:
            words += ["TEST.CALIBRATE", True]
        words += [*self.recipe(training).settings, *variant.overrides]
        # The prompts have their source's settings, without those of its images
        if dataset != training.dataset:
            of_source = variant.dataset_overrides.get(training.dataset, ())
            for key, value in by_key(of_source).items():
                if not key.startswith("DATASET."):
                    words += [key, value]
        words += variant.dataset_overrides.get(dataset, ())
        if values:
            words += values + self.choose.rule.settings
        elif self.keys_of(variant) and self.choose.by == ORACLE:
            words += ACCEPTED
        return words
