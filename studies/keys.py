"""The keys of a study, and their checks."""

from dataclasses import dataclass
from pathlib import Path

from common.errors import UsageError, check_dataset_name, check_name
from common.schema import FLAG, Accepts, shown
from configs.files import known_datasets

from .protocols import PROTOCOLS
from .rules import (
    ACCEPTED,
    HELD_OUT,
    LEAVE_ONE_OUT,
    SET_BY_CHOOSE,
    VALIDATION,
    Keys,
    SearchRule,
)
from .variant import Variant

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
