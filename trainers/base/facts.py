"""The facts of a method, which its class declares, and its settings."""

from collections.abc import Mapping
from typing import Any, ClassVar

from yacs.config import CfgNode

from common.errors import UsageError
from common.schema import Accepts

from .prompted import Declares
from .settings import MethodSettings


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
    together: ClassVar[bool] = False  # True: it answers for all images of a test together
    # What of its published results does not compare; tables show it, with a full stop
    caveat: ClassVar[str] = ""
    # Of its YAML files in configs/trainers/; empty: it has the method's name
    config_folder: ClassVar[str] = ""
    # Of --plugin, with the method (`method_file`); empty for one of this project
    plugin_file: ClassVar[str] = ""
    plugin_sha256: ClassVar[str] = ""
    saved_as: ClassVar[str] = "prompt_learner"  # folder of the checkpoints in the output folder
    # Whether a checkpoint has the prompt learner alone, not the whole model
    saves_learner: ClassVar[bool] = False
    # Names of tensors with values for each class: other classes have those that the method starts
    # from
    of_learned_classes: ClassVar[tuple[str, ...]] = ()
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
    fits: ClassVar[bool] = False  # whether an epoch is one computation instead of batches
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
