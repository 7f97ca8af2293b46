"""A study: methods, datasets, seeds and protocols, and the calls of train.py they add up to."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, product
from pathlib import Path

from common.errors import UsageError, check_dataset_name, check_name
from common.schema import FLAG, Accepts, shown
from configs.files import CONFIGS, config_folder, known_datasets
from configs.methods import plugin_of
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
from .merges import Merge, check_merges, merges_of
from .protocols import PROTOCOLS, Step
from .variant import Training, Variant

VALUES = {
    "seeds": Accepts(list[int], 0, 2**32 - 1),
    "shots": Accepts(list[int], 1),
    "cpus": Accepts(int, 1, 1024),
}
VALUES |= {"gpus": Accepts(int | float, 0, 1), "union": FLAG, "calibrate": FLAG}  # of a study


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
        check_merges(self)

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
        of_seeds = [variant for variant in self.variants if not variant.merged]
        learning = [variant.name for variant in of_seeds if variant.facts.learns]
        for variant in self.variants:
            if variant.over and variant.over not in learning:
                what = f"{variant.name} reads the answers of {variant.over}"
                raise UsageError(f"{what}, which is no trainer that learns here", "add it")

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
        names = self.trained_on(protocol)
        variants = [each for each in self.variants if not (each.over or each.merged)]
        for seed, dataset, shots, variant in product(
            self.seeds, names, self.shots_of(protocol), variants
        ):
            training = Training(protocol, variant, dataset, seed, shots)
            over_it = [each for each in self.variants if each.over == variant.name]
            trainings = [training, *(training._replace(variant=each) for each in over_it)]
            yield tuple(chain.from_iterable(map(self.sequence_of, trainings)))

    @cached_property
    def merges(self) -> list[Merge]:
        """The models that are merged after the runs of their seeds."""
        return [merge for protocol in self.protocols for merge in merges_of(self, protocol)]

    def sequence_of(self, training: Training, *model, place: Path = Path()) -> RunSequence:
        """A training run and its tests. With `model`, the options of train.py for another model,
        all of them are tests, in folders below `place`.
        """
        train, *tests = PROTOCOLS[training.protocol].steps
        ood = ("--ood", ",".join(self.ood)) if self.ood else ()
        trained = self.run(train, training.dataset, training, *model, *ood, place=place)
        targets = self.tested_on
        if training.protocol != "cross_dataset":
            targets = (training.dataset,)
        use = model or ("--eval-only", "--model-dir", trained.folder)
        steps = [step for step in tests if self.union or not step.optional]
        tested = [
            self.run(step, name, training, *use, place=place)
            for step, name in product(steps, targets)
        ]
        return (trained, *tested)

    def runs(self) -> list[Run]:
        """Those of the comparison, without trials."""
        sequences = [*self.sequences(), *(merge.tests for merge in self.merges)]
        return [run for sequence in sequences for run in sequence]

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
        for shots, variant, name in product(self.shots_of(protocol), self.variants, names):
            if self.keys_of(variant):
                training = Training(protocol, variant, name, self.seeds[0], shots)
                trials = self.trials_of(training)
                yield Search(protocol, variant, name, shots, self.chosen_file(training), trials)

    def trials_of(self, training: Training) -> dict[Values, tuple[Run, ...]]:
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
            trials[values] = tuple(self.trial(each, values) for each in trainings)
        return trials

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
        own = variant.overrides or variant.over
        name = (
            (variant.merged or variant.name).replace(" ", "_") if own else self.recipe(training).cfg
        )
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
        step = PROTOCOLS[training.protocol].steps[0]
        folder = self.folder(step, training.dataset, training).parent
        place = chosen_place(self, training.variant, training.protocol)
        return self.output / place / folder / "choice.json"

    def run(
        self,
        step: Step,
        dataset: str,
        training: Training,
        *options,
        values: Values = (),
        place: Path = Path(),
    ) -> Run:
        """The run of one step of a protocol on a dataset. Methods that learn nothing get
        --eval-only.

        Args:
            options: of train.py.
            values: of a trial; without them, the run has the chosen settings if there is a choice.
            place: of the folder of the run, below that of the results.
        """
        protocol = training.protocol
        variant = training.variant
        if not variant.facts.learns and "--eval-only" not in options:
            options = ("--eval-only", *options)
        if values:
            place = trial_place(self.choose.rule, values)
        elif self.keys_of(variant):
            place = chosen_place(self, variant, protocol)
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

    def run_below(self, training: Training) -> Run:
        """The training run whose answers a variant reads."""
        (base,) = (each for each in self.variants if each.name == training.variant.over)
        step = PROTOCOLS[training.protocol].steps[0]
        return self.run(step, training.dataset, training._replace(variant=base))

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
        if variant.over:
            words += [f"TRAINER.{variant.facts.section()}.OVER", self.run_below(training).folder]
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
