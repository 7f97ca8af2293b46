"""A study: methods, datasets, seeds and protocols, and the calls of train.py that they add up to."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from common.errors import UsageError, choose, choose_dataset

from ..configs import config_files, config_folder, known_datasets
from ..methods import Method, methods
from ..protocols import PROTOCOLS, Step, arguments, recipe

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

    Attributes:
        name: its name in tables and plots.
        method: name of the trainer.
        cfg: name of a YAML file in configs/trainers/<method>/; empty: that of the method's recipe for the protocol.
        cross_cfg: the YAML file for cross_dataset, if it differs.
        overrides: KEY, VALUE, KEY, VALUE, ...
        dataset_overrides: more overrides, for single datasets by name.

    Raises:
        UsageError: there is no such method, YAML file or dataset, or the method has no such setting.
    """

    name: str
    method: str
    cfg: str = ""
    cross_cfg: str = ""
    overrides: tuple[str, ...] = ()
    dataset_overrides: dict[str, tuple[str, ...]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        choose(self.method, methods(), "trainer")
        if not self.name.strip() or "/" in self.name or self.name.startswith("."):  # it may be part of a folder's name
            raise UsageError(f"the name {self.name!r} is empty, has a slash or starts with a dot", "use another one")
        names = [file.stem for file in config_files(self.method)]
        for config in filter(None, (self.cfg, self.cross_cfg)):
            choose(config, names, f"YAML file of {self.name}")
        for dataset in self.dataset_overrides:
            choose_dataset(dataset, known_datasets())
        for pairs in (self.overrides, *self.dataset_overrides.values()):
            for key in pairs[::2]:
                self.check_override(key)

    def check_override(self, key: str) -> None:
        group, _, rest = key.partition(".")
        what = f"{self.name} cannot override {key}"
        if key in SET_BY_STUDY:
            raise UsageError(what, f"use the study's own key {SET_BY_STUDY[key]}")
        if group == "TRAINER" and rest.split(".")[0] != self.facts.section:
            raise UsageError(what, f"{self.method} has the settings TRAINER.{self.facts.section}.*")

    @property
    def facts(self) -> Method:
        return methods()[self.method]

    @property
    def learns(self) -> bool:
        return self.facts.learns


@dataclass(frozen=True)
class Run:
    """One call of train.py: `classes` (`base`, `new` or `all`) of a dataset, with its results in `folder`."""

    protocol: str
    variant: Variant
    dataset: str
    seed: int
    shots: int
    classes: str
    folder: Path
    arguments: tuple[str, ...] = field(repr=False)

    @property
    def trains(self) -> bool:
        """Whether it learns prompts, rather than testing those of another run."""
        return "--eval-only" not in self.arguments


RunSequence = tuple[Run, ...]  # each run needs the ones before it


@dataclass(frozen=True)
class Study:
    """The runs to compare, the folder of the datasets, and the folder of the results (laid out as by the scripts).

    Attributes:
        protocols: some of `base2new`, `cross_dataset` and `few_shot`.
        datasets: for base2new and few_shot; names of YAML files in configs/datasets/.
        source, targets: for cross_dataset.
        shots: images per class; only few_shot uses more than the last number.
        union: also test base and new classes together (base2new).
        ood: datasets whose images the test of each training run tells from its own (train.py --ood); `new` for
            base2new.
        backbone: replaces the one of the YAML files.
        cache: folder for features of frozen image towers and for decoded test images, which runs share (CACHE and
            DATALOADER.CACHE_TEST of a run); without it, each run computes its own.
        cpus, gpus: resources of a run as a task of Ray: cores, which is also its number of threads, and GPUs (0.5: two
            runs share one). Without `gpus`, one if the cluster has any.

    Raises:
        UsageError: a value is unknown, missing or out of range.
    """

    variants: tuple[Variant, ...]
    datasets: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ("base2new",)
    seeds: tuple[int, ...] = (1, 2, 3)
    source: str = ""
    targets: tuple[str, ...] = ()
    shots: tuple[int, ...] = (16,)
    union: bool = False
    ood: tuple[str, ...] = ()
    backbone: str = ""
    cache: Path | None = None
    cpus: int = 1
    gpus: float | None = None
    root: Path = Path("data")
    output: Path = Path("output")

    def __post_init__(self) -> None:
        check_numbers("seeds", self.seeds, int, 0, 2**32 - 1)
        check_numbers("shots", self.shots, int, 1, 1_000_000)
        check_numbers("cpus", [self.cpus], int, 1, 1024)
        check_numbers("gpus", [] if self.gpus is None else [self.gpus], int | float, 0, 1)
        for protocol in self.protocols:
            choose(protocol, PROTOCOLS, "protocol")
        lists = {"trainers": self.variants, "protocols": self.protocols, "seeds": self.seeds, "shots": self.shots}
        for key, values in lists.items():
            if not values:
                raise UsageError(f"the study has no {key}", "see studies/small.yaml")
        if "base2new" in self.protocols and (names := [v.name for v in self.variants if not v.facts.transfers]):
            what = f"base2new has no meaning for {', '.join(names)}, which cannot tell classes that it has not learned"
            raise UsageError(what, "leave it out, or use few_shot")
        if not self.datasets and self.protocols != ("cross_dataset",):
            raise UsageError("the study has no datasets", "see studies/small.yaml")
        if "cross_dataset" in self.protocols and not (self.source and self.targets):
            raise UsageError("cross_dataset needs a source, such as imagenet, and targets")
        for dataset in (*self.datasets, *self.targets, *filter(None, [self.source])):
            choose_dataset(dataset, known_datasets())
        for name in self.ood:
            choose(name, [*known_datasets(), "new"], "dataset of ood")
        if not isinstance(self.union, bool) or (self.union and "base2new" not in self.protocols):
            raise UsageError(f"union has the value {self.union!r}", "give true for base2new, or leave it out")
        if "new" in self.ood and self.protocols != ("base2new",):
            raise UsageError("ood has new, which needs base classes", "use it with base2new alone")

    def sequences(self) -> list[RunSequence]:
        """All runs, seed by seed, so that early results cover all methods: each training run, then its tests."""
        return [sequence for protocol in self.protocols for sequence in self.sequences_of(protocol)]

    def sequences_of(self, protocol: str) -> Iterator[RunSequence]:
        train, *tests = (step for step in PROTOCOLS[protocol].steps if self.union or not step.optional)
        crosses = protocol == "cross_dataset"
        datasets = (self.source,) if crosses else self.datasets
        shots = self.shots if protocol == "few_shot" else self.shots[-1:]
        for seed, dataset, number, variant in product(self.seeds, datasets, shots, self.variants):
            of = (protocol, variant, dataset, seed, number)
            options = () if variant.learns else ("--eval-only",)
            trained = self.run(train, dataset, *of, *options, *(("--ood", ",".join(self.ood)) if self.ood else ()))
            tested = product(tests, self.targets if crosses else (dataset,))
            use = ("--eval-only", "--model-dir", trained.folder)
            yield trained, *(self.run(step, target, *of, *use) for step, target in tested)

    def runs(self) -> list[Run]:
        return [run for sequence in self.sequences() for run in sequence]

    def run(
        self,
        step: Step,
        dataset: str,
        protocol: str,
        variant: Variant,
        trained_on: str,
        seed: int,
        shots: int,
        *options,
    ) -> Run:
        """The run of one step of a protocol on a dataset; `options` are those of train.py."""
        cfg = (variant.cross_cfg if protocol == "cross_dataset" else "") or variant.cfg
        used = recipe(variant.method, protocol, trained_on, shots, cfg, self.backbone)
        # The same folder as the scripts', unless settings are overridden.
        name = variant.name.replace(" ", "_") if variant.overrides else used.cfg
        words = {"dataset": dataset, "name": f"{variant.method}/{name}", "shots": shots, "seed": seed}
        results = self.output / step.folder.format(**words)
        cache = ("CACHE", self.cache, "DATALOADER.CACHE_TEST", True) if self.cache else ()
        argv = arguments(
            folder=results,
            root=self.root,
            method=variant.method,
            config_file=config_folder(variant.method) / f"{used.cfg}.yaml",
            dataset=dataset,
            seed=seed,
            backbone=self.backbone,
            options=options,
            shots=shots,
            classes=step.classes,
            settings=(*cache, *used.settings, *variant.overrides, *variant.dataset_overrides.get(dataset, ())),
        )
        return Run(protocol, variant, dataset, seed, shots, step.classes, results, tuple(argv))


def check_numbers(key: str, values: Iterable, kind, least: int, most: int) -> None:
    for value in values:
        if not isinstance(value, kind) or isinstance(value, bool) or not least <= value <= most:
            numbers = "integers" if kind is int else "numbers"
            raise UsageError(f"{key} has the value {value!r}", f"give {numbers} from {least} to {most:,}")
