"""A study: one protocol or more, methods, datasets and seeds, as the runs of train.py that it takes."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import trainers
from common.start import ROOT

CONFIGS = ROOT / "configs"


@dataclass(frozen=True)
class Variant:
    """A method under one of its YAML files, with settings that override it.

    Attributes:
        name: how tables call it.
        method: name of the trainer.
        cfg: name of a YAML in configs/trainers/<method>/ (zero-shot CLIP: CoOp's).
        cross_cfg: likewise, for cross_dataset, where it differs.
        overrides: KEY, VALUE, KEY, VALUE, ...
        own: likewise, for datasets that take other settings than the rest, by their name.
    """

    name: str
    method: str
    cfg: str
    cross_cfg: str = ""
    overrides: tuple[str, ...] = ()
    own: dict[str, tuple[str, ...]] = field(default_factory=dict, hash=False)

    @property
    def trainer(self) -> type[trainers.PromptTrainer]:
        return trainers.methods()[self.method]

    @property
    def learns(self) -> bool:
        return self.trainer.learns

    @property
    def config_file(self) -> Path:
        return CONFIGS / "trainers" / self.trainer.config_folder / f"{self.cfg}.yaml"

    @property
    def folder(self) -> str:
        """Its place among the results, the scripts' own unless settings are overridden."""
        return f"{self.method}/{self.cfg if not self.overrides else self.name.replace(' ', '_')}"


@dataclass(frozen=True)
class Run:
    """One call of train.py: `classes` (`base`, `new` or `all`) of a dataset, tested in `folder`."""

    protocol: str
    variant: Variant
    dataset: str
    seed: int
    shots: int
    classes: str
    folder: Path
    arguments: tuple[str, ...] = field(repr=False)


Chain = tuple[Run, ...]  # runs that need one another, in order


@dataclass(frozen=True)
class Study:
    """What is compared, where the datasets are, and where results go (the scripts' folders below `output`).

    Attributes:
        protocols: of `base2new`, `cross_dataset` and `few_shot`.
        datasets: of base2new and few_shot; names of YAMLs in configs/datasets/.
        source, targets: of cross_dataset.
        shots: images a class; only few_shot takes more than the last of them.
        backbone: overrides the YAML's.
        cpus, gpus: what a run gets of a machine, as a task of Ray: cores, which are its threads, and GPUs, 0.5 to have
            two runs share one; without gpus, one if there are any.
    """

    variants: tuple[Variant, ...]
    datasets: tuple[str, ...]
    protocols: tuple[str, ...] = ("base2new",)
    seeds: tuple[int, ...] = (1, 2, 3)
    source: str = ""
    targets: tuple[str, ...] = ()
    shots: tuple[int, ...] = (16,)
    backbone: str = ""
    cpus: int = 1
    gpus: float | None = None
    root: Path = Path("data")
    output: Path = Path("output")

    def chains(self) -> list[Chain]:
        """Everything the study takes, seed by seed, so that early results are of all methods."""
        return [chain for protocol in self.protocols for chain in getattr(self, protocol)()]

    def run(
        self, protocol: str, variant: Variant, dataset: str, seed: int, shots: int, classes: str, folder: str, *options
    ) -> Run:
        place = self.output / folder
        arguments = (
            *("--skip-finished", "--root", self.root, "--output-dir", place, "--seed", seed),
            *("--trainer", variant.method, "--dataset-config-file", CONFIGS / f"datasets/{dataset}.yaml"),
            *("--config-file", variant.config_file, *(("--backbone", self.backbone) if self.backbone else ())),
            *(*options, "DATASET.NUM_SHOTS", shots, "DATASET.SUBSAMPLE_CLASSES", classes),
            *(*variant.overrides, *variant.own.get(dataset, ())),
        )
        return Run(protocol, variant, dataset, seed, shots, classes, place, tuple(map(str, arguments)))

    def base2new(self) -> Iterator[Chain]:
        """Train and test on base classes, then test on new ones (CoCoOp's protocol)."""
        for seed, dataset, variant in product(self.seeds, self.datasets, self.variants):
            place = f"{dataset}/shots_{self.shots[-1]}/{variant.folder}/seed{seed}"
            common = ("base2new", variant, dataset, seed, self.shots[-1])
            base = self.run(*common, "base", f"base2new/train_base/{place}", *test_only(variant))
            new = self.run(*common, "new", f"base2new/test_new/{place}", "--eval-only", "--model-dir", base.folder)
            yield base, new

    def cross_dataset(self) -> Iterator[Chain]:
        """Train on all classes of the source, then test on every target."""
        variants = [replace(variant, cfg=variant.cross_cfg or variant.cfg) for variant in self.variants]
        for seed, variant in product(self.seeds, variants):
            shots = self.shots[-1]
            place = f"{variant.folder}_{shots}shots/seed{seed}"
            common = ("cross_dataset", variant)
            own = (seed, shots, "all")
            trained = self.run(*common, self.source, *own, f"crossdataset/{self.source}/{place}", *test_only(variant))
            tests = (
                self.run(
                    *(*common, target, *own, f"crossdataset/evaluation/{target}/{place}"),
                    *("--eval-only", "--model-dir", trained.folder),
                )
                for target in self.targets
            )
            yield trained, *tests

    def few_shot(self) -> Iterator[Chain]:
        """Train and test on all classes, for every number of shots."""
        for seed, dataset, shots, variant in product(self.seeds, self.datasets, self.shots, self.variants):
            place = f"{dataset}/{variant.folder}_{shots}shots/seed{seed}"
            yield (self.run("few_shot", variant, dataset, seed, shots, "all", place, *test_only(variant)),)


def test_only(variant: Variant) -> tuple[str, ...]:
    """The option of a run that has nothing to train."""
    return () if variant.learns else ("--eval-only",)
