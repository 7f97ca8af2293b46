"""A variant of a method in a study: a YAML file, and settings that override it."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from common.errors import UsageError, check_dataset_name, check_name
from configs.files import config_names, known_datasets
from configs.methods import check_method, methods

from .rules import Keys, Values, by_key

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
