"""The facts of a method, which its class declares, and its settings: a dataclass that checks
itself, with the YAML keys under TRAINER.<NAME> as fields.
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

from .prompted import Declares

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


class Facts(Declares):
    """The facts of a method: its kind, needs and files. They know no model."""

    Settings: ClassVar[type[MethodSettings]] = MethodSettings
    # Other names of its section, in published YAML files
    published_sections: ClassVar[tuple[str, ...]] = ()
    # More keys of its published YAML files; defaults
    published_keys: ClassVar[Mapping[str, tuple[Any, Accepts]]] = {}
    # Its settings that these files have directly below TRAINER
    published_outside: ClassVar[tuple[str, ...]] = ()
    learns: ClassVar[bool] = True  # False: there is nothing to train
    seeded: ClassVar[bool] = True  # False: its results are the same for every seed
    reads_template: ClassVar[bool] = False  # True: its logits depend on the dataset's sentence
    # True: it reads sentences for each class where it reads a template
    reads_sentences: ClassVar[bool] = False
    needs_sentences: ClassVar[bool] = False  # True: it means nothing without them
    # False: what it learns is of its own classes, so that it cannot tell new ones
    transfers: ClassVar[bool] = True
    # Its other data, besides labelled images and class names: data_use.METHOD_KINDS
    kind: ClassVar[str] = "inductive"
    is_transductive: ClassVar[bool] = False  # True: it answers for all images of a test together
    # Whether an answer depends on the images before (`ViewsMethod.new_state`)
    depends_on_order: ClassVar[bool] = False
    # What of its published results does not compare; tables show it, with a full stop
    caveat: ClassVar[str] = ""
    # Of its YAML files in configs/trainers/; empty: it has the method's name
    config_folder: ClassVar[str] = ""
    # Of --plugin, with the method (`method_file`); empty for one of this project
    plugin_file: ClassVar[str] = ""
    plugin_sha256: ClassVar[str] = ""
    checkpoint_folder: ClassVar[str] = "prompt_learner"  # in the output folder
    # Whether a checkpoint has the prompt learner alone, not the whole model
    checkpoint_has_learner_only: ClassVar[bool] = False
    # Names of tensors with values for each class: other classes have those that the method starts
    # from
    tensors_by_class: ClassVar[tuple[str, ...]] = ()
    # Names of its learned tensors in published checkpoints; * is any text
    published: ClassVar[tuple[str, ...]] = ()
    # Written by its published code instead of checkpoints (`of_published_file`)
    published_file: ClassVar[str] = ""
    # Tensors there that look learned, and take no part in it
    published_unused: ClassVar[tuple[str, ...]] = ()
    # Whether the learning rate changes after each step, not each epoch
    schedule_steps: ClassVar[bool] = False
    # Whether an epoch has a smaller last batch, which Dassl leaves out
    keeps_last_batch: ClassVar[bool] = False
    saves_each_epoch: ClassVar[bool] = True  # False: only those that TRAIN.CHECKPOINT_FREQ keeps
    trains_in_one_step: ClassVar[bool] = False  # by one computation instead of batches
    # Whether a plug-in may add to its loss
    takes_plugins: ClassVar[bool] = True
    # Whether the end of the last epoch changes the model: an average, settings that are chosen
    finishes: ClassVar[bool] = False

    @classmethod
    def section(cls) -> str:
        """The method's key under TRAINER."""
        return cls.__name__.upper()

    @classmethod
    def sections(cls) -> list[str]:
        """The method's key under TRAINER, and its other names in published YAML files."""
        return [cls.section(), *(name.removeprefix("TRAINER.") for name in cls.published_sections)]

    @classmethod
    def settings_of(cls, cfg: CfgNode) -> Any:
        """The method's settings in a configuration; what its section leaves out, or has as None, is
        the default.

        Raises UsageError if a value cannot work; the message names its key in full.
        """
        section = cls.section()
        values = cfg.TRAINER.get(section, {}).items()
        known = cls.Settings.schema()
        given = {key: value for key, value in values if key in known and value is not None}
        try:
            return cls.Settings(**given)
        except UsageError as error:
            fault = error.fault.removeprefix(f"TRAINER.{section}.")
            raise UsageError(f"TRAINER.{section}.{fault}", error.remedy) from error

    @classmethod
    def check_settings(cls, cfg: CfgNode) -> None:
        """Raise UsageError if the settings cannot work, or it reads no sentences and has some, or
        needs them.
        """
        cls.settings_of(cfg)
        given = cfg.DATASET.get("SENTENCES", "")
        if given and not cls.reads_sentences:
            fault = (
                f"DATASET.SENTENCES has no effect: {cls.__name__} reads no sentences for classes"
            )
            raise UsageError(fault, "leave it out")
        if cls.needs_sentences and not given:
            raise UsageError(
                f"{cls.__name__} has no sentences for the classes", "give DATASET.SENTENCES FILE"
            )
