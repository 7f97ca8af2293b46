"""A study, read from its file, and its plan: training runs, single calls of train.py, trials."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from itertools import chain, product
from pathlib import Path
from typing import Any, NamedTuple, get_origin, get_type_hints

from common.errors import UsageError, check_name
from common.files import check_no_link
from configs.files import CONFIGS, config_folder, read_yaml
from configs.methods import methods, plugin_of
from configs.recipes import Recipe, recipe

from .study import (
    ACCEPTED,
    LEAVE_ONE_OUT,
    ORACLE,
    PROTOCOLS,
    Step,
    StudyKeys,
    Values,
    Variant,
    by_key,
    choose_from,
    chosen_place,
    keys_from,
    mapping,
    trial_place,
)


class PlannedTraining(NamedTuple):
    """A training run; a test has that of the run whose prompts it uses."""

    protocol: str
    variant: Variant
    dataset: str
    seed: int
    shots: int


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
class Study(StudyKeys):
    """The runs to compare, the folder of the datasets, and the folder of the results (laid out as
    by the scripts).

    Raises UsageError if a value is unknown, missing or out of range.
    """

    @cached_property
    def sequences(self) -> tuple[RunSequence, ...]:
        """All runs, seed by seed, so that early results cover all methods: each training run, then
        its tests.
        """
        return tuple(
            sequence for protocol in self.protocols for sequence in self.sequences_of(protocol)
        )

    def sequences_of(self, protocol: str) -> Iterator[RunSequence]:
        names = self.trained_on(protocol)
        variants = [each for each in self.variants if not each.over]
        for seed, dataset, shots, variant in product(
            self.seeds, names, self.shots_of(protocol), variants
        ):
            training = PlannedTraining(protocol, variant, dataset, seed, shots)
            over_it = [each for each in self.variants if each.over == variant.name]
            trainings = [training, *(training._replace(variant=each) for each in over_it)]
            yield tuple(chain.from_iterable(map(self.sequence_of, trainings)))

    def sequence_of(self, training: PlannedTraining) -> RunSequence:
        """A training run and its tests."""
        _, *tests = PROTOCOLS[training.protocol].steps
        ood = ("--ood", ",".join(self.ood)) if self.ood else ()
        trained = self.training_run(training, *ood)
        targets = self.tested_on
        if training.protocol != "cross_dataset":
            targets = (training.dataset,)
        use = ("--eval-only", "--model-dir", trained.folder)
        steps = [step for step in tests if self.union or not step.optional]
        tested = [self.run(step, name, training, *use) for step, name in product(steps, targets)]
        return (trained, *tested)

    def runs(self) -> list[Run]:
        """Those of the comparison, without trials."""
        return [run for sequence in self.sequences for run in sequence]

    @cached_property
    def searches(self) -> list[Search]:
        """The choices to be made before the runs of the comparison."""
        return [search for protocol in self.protocols for search in self.searches_of(protocol)]

    def searches_of(self, protocol: str) -> Iterator[Search]:
        names = self.trained_on(protocol)
        for shots, variant, name in product(self.shots_of(protocol), self.variants, names):
            if self.keys_of(variant):
                training = PlannedTraining(protocol, variant, name, self.seeds[0], shots)
                trials = self.trials_of(training)
                yield Search(protocol, variant, name, shots, self.chosen_file(training), trials)

    def trials_of(self, training: PlannedTraining) -> dict[Values, tuple[Run, ...]]:
        """The runs that choose the settings of a training run, by the values that they try."""
        datasets = [training.dataset]
        if self.choose.by == LEAVE_ONE_OUT:
            names = self.trained_on(training.protocol)
            datasets = [other for other in names if other != training.dataset]
        trainings = [
            training._replace(dataset=dataset, seed=seed)
            for dataset, seed in product(datasets, self.seeds)
        ]
        keys = dict(self.keys_of(training.variant))
        trials = {}
        for combination in product(*keys.values()):
            values = tuple(chain(*zip(keys, combination, strict=True)))
            trials[values] = tuple(self.training_run(each, values=values) for each in trainings)
        return trials

    def trials(self) -> list[Run]:
        """The runs that choose, each once."""
        every = (chain(*search.trials.values()) for search in self.searches)
        return list(dict.fromkeys(chain(*every)))

    def folder(self, step: Step, dataset: str, training: PlannedTraining) -> Path:
        """The folder of a run, below that of the results: the scripts', unless settings are
        overridden.
        """
        _, variant, _, seed, shots = training
        own = variant.overrides or variant.over
        name = variant.name.replace(" ", "_") if own else self.recipe(training).cfg
        return Path(
            step.folder.format(
                dataset=dataset, name=f"{variant.method}/{name}", shots=shots, seed=seed
            )
        )

    @cached_property
    def found_recipe(self) -> Any:
        """`recipe`, which reads a folder: a study has thousands of runs."""
        return cache(recipe)

    def recipe(self, training: PlannedTraining) -> Recipe:
        protocol, variant, dataset, _, shots = training
        cfg = (variant.cross_cfg if protocol == "cross_dataset" else "") or variant.cfg
        return self.found_recipe(variant.method, protocol, dataset, shots, cfg, self.backbone)

    def chosen_place(self, training: PlannedTraining) -> Path:
        """The folder of the runs with the settings that were chosen."""
        by = self.choose.by
        others = self.trained_on(training.protocol) if by == LEAVE_ONE_OUT else ()
        return chosen_place(by, self.keys_of(training.variant), self.seeds, others)

    def chosen_file(self, training: PlannedTraining) -> Path:
        """The file of the settings that were chosen for the dataset of a training run; all seeds
        have the same.
        """
        step = PROTOCOLS[training.protocol].steps[0]
        folder = self.folder(step, training.dataset, training).parent
        return self.output / self.chosen_place(training) / folder / "choice.json"

    def run(
        self,
        step: Step,
        dataset: str,
        training: PlannedTraining,
        *options,
        values: Values = (),
    ) -> Run:
        """The run of one step of a protocol on a dataset. Methods that learn nothing get
        --eval-only.

        Args:
            options: of train.py.
            values: of a trial; without them, the run has the chosen settings if there is a choice.
        """
        variant = training.variant
        if not variant.facts.learns and "--eval-only" not in options:
            options = ("--eval-only", *options)
        place = Path()
        if values:
            place = trial_place(self.choose.rule, values)
        elif self.keys_of(variant):
            place = self.chosen_place(training)
            options = (*options, "--chosen", self.chosen_file(training))
        folder = self.output / place / self.folder(step, dataset, training)
        words = [*self.options(folder, dataset, training), *options]
        words += ["DATASET.NUM_SHOTS", training.shots]
        if step.classes != "all":
            words += ["DATASET.SUBSAMPLE_CLASSES", step.classes]
        words += self.settings(dataset, training, values)
        facts = training._replace(dataset=dataset)
        return Run(*facts, step.classes, folder, tuple(map(str, words)), values)

    def training_run(self, training: PlannedTraining, *options, **more: Any) -> Run:
        """The run of the first step of a protocol; arguments as of `run`."""
        step = PROTOCOLS[training.protocol].steps[0]
        return self.run(step, training.dataset, training, *options, **more)

    def variant(self, name: str) -> Variant:
        (found,) = (variant for variant in self.variants if variant.name == name)
        return found

    def options(self, folder: Path, dataset: str, training: PlannedTraining) -> list:
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

    def settings(self, dataset: str, training: PlannedTraining, values: Values) -> list:
        """KEY, VALUE, ... of a run; the last one of a key counts."""
        variant = training.variant
        words: list = []
        if self.cache:
            words += ["CACHE", self.cache]
        if self.calibrate and not values:
            words += ["TEST.CALIBRATE", True]
        words += [*self.recipe(training).settings, *variant.overrides]
        if variant.over:
            below = self.training_run(training._replace(variant=self.variant(variant.over)))
            words += [f"TRAINER.{variant.facts.section()}.OVER", below.folder]
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


STUDY_KEYS = ["trainers", *(field.name for field in fields(Study) if field.name != "variants")]
TRAINER_KEYS = (
    "trainer", "config", "cross_dataset", "overrides", "datasets", "choose"
)  # fmt: skip


def load(file: Path, settings: bool = True) -> Study:
    """The study of a file. `settings` also checks the settings of its runs, which takes seconds.

    Raises UsageError if the file is unreadable, or it has an unknown key or name, or settings that
    no run can have.
    """
    try:
        study = study_from(read_yaml(file))
        examples = distinct_runs(study)
        if settings:
            check_settings(examples)
    except UsageError as error:
        raise UsageError(error.fault, error.remedy, error.where or file) from error
    return study


def study_from(content: dict) -> Study:
    """A `Study` from the content of its file. An empty value means the default."""
    given = {key: value for key, value in content.items() if value is not None}
    for key in given:
        check_name(key, STUDY_KEYS, "key")
    entries = by_name(given.pop("trainers", None))
    kinds = get_type_hints(Study)
    values = {key: convert(key, value, kinds[key]) for key, value in given.items()}
    variants = [variant_from(str(name), entry) for name, entry in entries.items()]
    return Study(tuple(variants), **values)


def by_name(trainers: Any) -> dict:
    """The trainers of a study file by name: it has a mapping, or a list of names and of `NAME:
    ...`.

    Raises UsageError if there are none, or a name is there twice.
    """
    if isinstance(trainers, dict) and trainers:
        return trainers
    if isinstance(trainers, str):
        trainers = [trainers]
    pairs: list[tuple[Any, Any]] = []
    for item in trainers if isinstance(trainers, list) else []:
        if isinstance(item, dict):
            pairs += item.items()
        else:
            pairs.append((str(item), None))
    if len(dict(pairs)) < max(1, len(pairs)):
        fault = "trainers has a name twice" if pairs else "the study has no trainers"
        raise UsageError(fault, "name each once, such as trainers: [CoOp, MPL]")
    return dict(pairs)


def convert(key: str, value: Any, kind: Any) -> Any:
    """A value of a YAML file as a field of `Study`: a single value becomes a list of one."""
    if key == "choose":
        return choose_from(value)
    if get_origin(kind) is tuple:
        return tuple(value) if isinstance(value, list) else (value,)
    if kind not in (str, Path, Path | None):
        return value
    # A dash begins an option of train.py
    if not isinstance(value, str) or not value.strip() or value.startswith("-"):
        raise UsageError(
            f"{key} is {value!r}", "give a name" if kind is str else "give the path of a folder"
        )
    return value if kind is str else Path(os.path.expanduser(value))


def variant_from(name: str, entry: Any) -> Variant:
    """A `Variant` from `NAME:`, `NAME: CONFIG`, or `NAME: {KEY: ...}` with TRAINER_KEYS."""
    entry = entry if isinstance(entry, dict) else {"config": entry}
    for key in entry:
        check_name(key, TRAINER_KEYS, f"key of {name}")
    given = {key: value for key, value in entry.items() if value is not None}
    datasets = mapping(given.get("datasets", {}), f"datasets of {name}", "DATASET: OVERRIDES")
    of_datasets = {str(dataset): pairs(content, name) for dataset, content in datasets.items()}
    keys = keys_from(given["choose"], f"choose of {name}") if "choose" in given else None
    method, over = pair_of(name) if "trainer" not in given else (str(given["trainer"]), "")
    return Variant(
        name,
        method,
        str(given.get("config", "")),
        str(given.get("cross_dataset", "")),
        pairs(given.get("overrides", {}), name),
        of_datasets,
        over,
        keys,
    )


def pair_of(name: str) -> tuple[str, str]:
    """The method of an entry, and the entry whose run it reads: TransCLIP and CoOp of
    TransCLIP+CoOp, DPC+CoOp and CoOp of DPC+CoOp, which have the setting OVER.
    """
    first, _, over = name.partition("+")
    for method in (name, first):
        kind = methods().get(method)
        if over and kind and "OVER" in kind.Settings.schema():
            return method, over
    return name, ""


def pairs(overrides: Any, name: str) -> tuple[str, ...]:
    """KEY, VALUE, KEY, VALUE, ..."""
    items = mapping(overrides, f"overrides of {name}", "KEY: VALUE").items()
    return tuple(word for key, value in items for word in (str(key), str(value)))


def distinct_runs(study: Study) -> list[Run]:
    """A run of each variant in each protocol, of a choice one for each value; UsageError if two
    runs share a folder, or one's is a link."""
    folders = dict[Path, Variant]()
    examples = dict[tuple | str, Run]()
    trials = study.trials()
    for run in (*trials, *study.runs()):
        if other := folders.get(run.folder):
            listed = "give each seed, dataset and number of shots once"
            remedy = (
                listed if other == run.variant else "leave one out, or give one of them overrides"
            )
            raise UsageError(f"the study has the run of {run.folder} twice", remedy)
        folders[run.folder] = run.variant
        check_no_link(run.folder, study.output)
        # The settings of others are not known yet
        if run.values or not run.option("--chosen"):
            examples[run.protocol, run.variant.name, run.values] = run
            examples[run.option("--dataset-config-file")] = run
    return list(dict.fromkeys(examples.values()))


def check_settings(runs: list[Run]) -> None:
    """Check the settings of runs; overrides for a dataset are checked even if the study has no run
    on it.
    """
    from clip import available_models  # here, as these import torch
    from runs.arguments import parse_arguments
    from runs.config import setup_cfg

    for run in runs:
        for overrides in ((), *run.variant.dataset_overrides.values()):
            try:
                cfg = setup_cfg(parse_arguments([*run.arguments, *overrides]))
                backbone = cfg.MODEL.BACKBONE.NAME
                # An open_clip pair or a file may be on other machines.
                if (
                    not re.search("[.:]", backbone)
                    and not Path(os.path.expanduser(backbone)).exists()
                ):
                    check_name(
                        backbone, ["small", *available_models()], "backbone", "MODEL.BACKBONE.NAME"
                    )
                if cfg.TEST.NO_TEST:
                    raise UsageError(
                        "TEST.NO_TEST is True",
                        "leave it out, as a run of a study ends with its test",
                    )
            except ValueError as error:
                raise UsageError(f"{run.variant.name}: {error}") from error
