"""A study: methods, datasets, seeds and protocols, and the calls of train.py they add up to."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, product
from pathlib import Path
from typing import Any

from configs.files import CONFIGS, config_folder
from configs.methods import plugin_of
from configs.recipes import Recipe, recipe

from .keys import StudyKeys
from .planned import PlannedTraining, Run, RunSequence, Search
from .protocols import PROTOCOLS, Step
from .rules import ACCEPTED, LEAVE_ONE_OUT, ORACLE, Values, by_key, chosen_place, trial_place
from .variant import Variant


@dataclass(frozen=True)
class Study(StudyKeys):
    """The runs to compare, the folder of the datasets, and the folder of the results (laid out as
    by the scripts).

    Raises UsageError if a value is unknown, missing or out of range.
    """

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
        return [run for sequence in self.sequences() for run in sequence]

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
    def recipes(self) -> dict[tuple, Recipe]:
        """Those that were asked for: finding one reads a folder, and a study has thousands of
        runs.
        """
        return {}

    def recipe(self, training: PlannedTraining) -> Recipe:
        protocol, variant, dataset, _, shots = training
        key = protocol, variant, dataset, shots
        if key not in self.recipes:
            cfg = (variant.cross_cfg if protocol == "cross_dataset" else "") or variant.cfg
            self.recipes[key] = recipe(variant.method, protocol, dataset, shots, cfg, self.backbone)
        return self.recipes[key]

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
        protocol = training.protocol
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
        return Run(
            protocol,
            variant,
            dataset,
            training.seed,
            training.shots,
            step.classes,
            folder,
            tuple(map(str, words)),
            values,
        )

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
