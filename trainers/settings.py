"""The settings of a method as a dataclass that checks itself; its fields are the YAML keys under TRAINER.<NAME>."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from functools import partial
from types import UnionType
from typing import Any, Union, get_origin, get_type_hints

from common.errors import UsageError

PRECISIONS = ("fp16", "fp32", "amp")
PerLayer = int | list[int]  # one number for all layers, or a number for each


@dataclass(frozen=True)
class MethodSettings:
    """What every method has. A method adds fields with defaults, and checks them in `check`."""

    PREC: str = "fp16"

    def __post_init__(self) -> None:
        if self.PREC not in PRECISIONS:
            raise UsageError(f"PREC is {self.PREC!r}, not one of {', '.join(PRECISIONS)}")
        self.check()

    def check(self) -> None:
        """Raise UsageError for values that cannot work together; its text starts with the name of a field."""

    def per_layer(self, key: str, layers: int, named: str) -> list[int]:
        """A `PerLayer` field as a list with one number for each layer.

        Args:
            key: name of the field.
            layers: how many layers there are.
            named: the settings that make this number, for the error.

        Raises:
            UsageError: negative numbers, or a list of another length.
        """
        if layers < 0:
            raise UsageError(f"{named} is {layers}", "it must be 0 or more")
        value = getattr(self, key)
        numbers = list(value) if isinstance(value, list | tuple) else [value] * layers
        if len(numbers) != layers or not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise UsageError(f"{key} is {value!r}", f"give one number >= 0, or a list of {named} = {layers} of them")
        return numbers

    @classmethod
    def cfg_defaults(cls) -> dict[str, Any]:
        """The keys for a yacs node. A field of several types is None: yacs accepts any type for a key that is None, and
        otherwise only the type of the default."""
        return {name: None if name in cls.flexible() else value for name, value in asdict(cls()).items()}

    @classmethod
    def flexible(cls) -> list[str]:
        """Names of the fields that take values of several types."""
        return [name for name, kind in get_type_hints(cls).items() if get_origin(kind) in (Union, UnionType)]

    @classmethod
    def from_cfg(cls, values: Mapping[str, Any], section: str) -> MethodSettings:
        """The settings of a configuration's node TRAINER.<section>; what it leaves out, or has as None, is the default.

        Raises:
            UsageError: a value cannot work; the message names its key in full.
        """
        known = {item.name for item in fields(cls)}
        try:
            return cls(**{key: value for key, value in values.items() if key in known and value is not None})
        except UsageError as error:
            raise UsageError(f"TRAINER.{section}.{error.what}", error.remedy) from error


def settings_from(defaults: Mapping[str, Any], base: type[MethodSettings] = MethodSettings) -> type[MethodSettings]:
    """A settings class from a mapping of defaults, added to those of `base`; no checks of its own."""
    items = [(key, type(value), field(default_factory=partial(deepcopy, value))) for key, value in defaults.items()]
    return make_dataclass("ShortSettings", items, bases=(base,), frozen=True)
