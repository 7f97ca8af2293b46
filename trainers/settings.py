"""The settings of a method as a dataclass that checks itself; its fields are the YAML keys under TRAINER.<NAME>."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from functools import partial
from reprlib import repr as shown  # on one line
from types import UnionType
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints

from common.errors import UsageError

PRECISIONS = ("fp16", "bf16", "fp32", "amp")
PerLayer = int | list[int]  # one number for all layers, or a number for each
Range = tuple[float, float]
# Least and largest value of numbers by the name of their setting. The largest are far above those that make sense: a
# typing error shall not fill the memory. Whether prompts fit a backbone is checked when it is loaded.
RANGES: dict[str, Range] = {
    "N_CTX": (1, 256),
    "N_CTX_TEXT": (1, 256),
    "N_CTX_VISION": (1, 256),
    "PROMPT_DEPTH": (1, 100),
    "PROMPT_DEPTH_TEXT": (0, 100),
    "PROMPT_DEPTH_VISION": (0, 100),
}
OTHERS: Range = (-1_000_000, 1_000_000)
LONGEST = 1000  # characters of a text, values of a list


TYPES: dict[type, dict[str, Any]] = {}  # a study asks for the same ones some thousand times


def types_of(settings: type) -> dict[str, Any]:
    """The types of the fields of a settings class."""
    if settings not in TYPES:
        TYPES[settings] = get_type_hints(settings)
    return TYPES[settings]


@dataclass(frozen=True)
class MethodSettings:
    """What every method has. A method adds fields with defaults, the ranges of its numbers, and further checks.

    Attributes:
        ranges: the least and the largest value of numbers, by field. They replace those of `RANGES` and add to those
            of the class that this one extends.
    """

    PREC: str = "fp16"
    ranges: ClassVar[Mapping[str, Range]] = {}

    def __post_init__(self) -> None:
        if self.PREC not in PRECISIONS:
            raise UsageError(f"PREC is {self.PREC!r}, not one of {', '.join(PRECISIONS)}")
        for item in fields(self):
            self.check_value(item.name, getattr(self, item.name))
        for name in self.flexible():  # yacs holds the others to the type of their default
            kinds = [get_origin(kind) or kind for kind in get_args(types_of(type(self))[name])]
            if not isinstance(value := getattr(self, name), (*kinds, *([tuple] if list in kinds else []))):
                words = " or ".join(kind.__name__ for kind in kinds)
                raise UsageError(f"{name} is {shown(value)}", f"give a value of the type {words}")
        self.check()

    def check_value(self, key: str, value: Any) -> None:
        """Raise UsageError for a number out of its range, in a list too, and for a very long text or list."""
        own = (vars(cls)["ranges"] for cls in type(self).__mro__ if key in vars(cls).get("ranges", {}))
        low, high = next(own, RANGES).get(key, OTHERS)
        parts = value if isinstance(value, list | tuple) else [value]
        numbers = [part for part in parts if type(part) in (int, float)]
        if not all(low <= number <= high for number in numbers):  # and not NaN
            raise UsageError(f"{key} is {shown(value)}", f"give a number from {low:,} to {high:,}")
        if isinstance(value, str | list | tuple) and len(value) > LONGEST:
            raise UsageError(f"{key} has {len(value):,} characters or values", f"give at most {LONGEST:,}")

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
        if len(numbers) != layers or not all(type(number) is int and number >= 0 for number in numbers):
            remedy = f"give one number >= 0, or a list of {named} = {layers} of them"
            raise UsageError(f"{key} is {shown(value)}", remedy)
        return numbers

    @classmethod
    def cfg_defaults(cls) -> dict[str, Any]:
        """The keys for a yacs node. A field of several types is None: yacs accepts any type for a key that is None, and
        otherwise only the type of the default."""
        flexible = cls.flexible()
        return {name: None if name in flexible else value for name, value in asdict(cls()).items()}

    @classmethod
    def flexible(cls) -> list[str]:
        """Names of the fields that take values of several types."""
        return [name for name, kind in types_of(cls).items() if get_origin(kind) in (Union, UnionType)]

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
