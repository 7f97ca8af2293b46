"""The settings of a method as a dataclass that checks itself; its fields are the YAML keys under
TRAINER.<NAME>.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from os import PathLike
from typing import Any, ClassVar, Literal, get_args, get_type_hints

from yacs.config import CfgNode

from common.errors import UsageError
from common.removed import had_no_effect, instead_of
from common.schema import Accepts, add_settings, shown

Precision = Literal["fp16", "bf16", "fp32", "amp"]
PRECISIONS = get_args(Precision)
PerLayer = int | list[int]  # one number for all layers, or a number for each


@dataclass(frozen=True)
class MethodSettings:
    """What every method has. A method adds fields with defaults, the ranges of its numbers, and
    further checks.
    """

    PREC: Precision = "fp16"
    # The least and the largest number, by field, to which a subclass adds. The backbone may allow
    # less.
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **dict.fromkeys(("N_CTX", "N_CTX_TEXT", "N_CTX_VISION"), (1, 256)),
        **dict.fromkeys(("PROMPT_DEPTH_TEXT", "PROMPT_DEPTH_VISION"), (0, 100)),
        "PROMPT_DEPTH": (1, 100),
    }

    def __post_init__(self) -> None:
        for name, accepts in self.schema().items():
            if not accepts.accepts(value := getattr(self, name)):
                raise UsageError(f"{name} is {shown(value)}", f"give {accepts}")
        self.check()

    @classmethod
    @cache  # a study asks some thousand times
    def schema(cls) -> dict[str, Accepts]:
        """The values that each field accepts."""
        types = get_type_hints(cls)
        ranges = dict[str, tuple[float, float]]()
        for parent in reversed(cls.__mro__):
            ranges |= vars(parent).get("ranges", {})
        return {
            item.name: Accepts(types[item.name], *ranges.get(item.name, ())) for item in fields(cls)
        }

    @classmethod
    def with_defaults(cls) -> dict[str, tuple[Any, Accepts]]:
        """The default of each field, and the values that it accepts."""
        settings = {}
        for item in fields(cls):
            factory = item.default_factory
            default = item.default if factory is MISSING else factory()
            settings[item.name] = (default, cls.schema()[item.name])
        return settings

    @classmethod
    def add_to(cls, cfg: CfgNode, section: str) -> None:
        """Add the fields to a configuration, as TRAINER.<section>.*; a run checks its own."""
        node = cfg.TRAINER.setdefault(section, CfgNode())
        new = {name: pair for name, pair in cls.with_defaults().items() if name not in node}
        add_settings(cfg, {f"TRAINER.{section}.{name}": pair for name, pair in new.items()})

    def check(self) -> None:
        """Raise UsageError for values that cannot work together; its text starts with the name of a
        field.
        """

    def per_layer(self, key: str, layers: int, named: str) -> list[int]:
        """The `PerLayer` field `key` as a list with one number for each layer; `named` is how
        settings give `layers`. Raises UsageError for a list of another length."""
        value = getattr(self, key)
        numbers = list(value) if isinstance(value, list | tuple) else [value] * layers
        if len(numbers) != layers:
            raise UsageError(
                f"{key} is {shown(value)}",
                f"give one number, or a list of {named} = {layers} of them",
            )
        return numbers


def without_removed(settings: Mapping[str, Any], where: str | PathLike = "") -> dict[str, Any]:
    """The settings of a method by an older version, without those that did nothing. Raises
    UsageError for one that was removed and had an effect.
    """
    left = {key: value for key, value in settings.items() if not had_no_effect(key, value)}
    for key in left:
        if gone := instead_of(key):
            raise UsageError(gone, "", where)
    return left
