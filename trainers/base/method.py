"""The facts that a method declares, and those that it derives from a run before there is a model."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

from dassl.engine import TrainerX
from yacs.config import CfgNode

from common.errors import UsageError
from common.schema import Accepts

from .data_use import Choice, epoch_choice
from .settings import MethodSettings, settings_from

TEMPLATE = "a photo of a {}."  # for a dataset that has none of its own


class Method(TrainerX):
    """The facts of a method, its settings, and the classes of its run."""

    Settings: ClassVar[type[MethodSettings]] = MethodSettings
    defaults: ClassVar[dict[str, Any]] = {}  # a short form of `Settings`, for settings that need no checks
    published_sections: ClassVar[tuple[str, ...]] = ()  # other names of its section, in published YAML files
    published_keys: ClassVar[Mapping[str, tuple[Any, Accepts]]] = {}  # more keys of its published YAML files; defaults
    learns: ClassVar[bool] = True  # False: there is nothing to train
    seeded: ClassVar[bool] = True  # False: its results are the same for every seed
    reads_template: ClassVar[bool] = False  # True: its logits depend on the dataset's sentence
    transfers: ClassVar[bool] = True  # False: what it learns is of its own classes, so that it cannot tell new ones
    kind: ClassVar[str] = "inductive"  # its other data, besides labelled images and class names: data_use.METHOD_KINDS
    caveat: ClassVar[str] = ""  # what of its published results does not compare; tables show it, with a full stop
    config_folder: ClassVar[str] = ""  # of its YAML files in configs/trainers/; by default its name
    divergence_remedy: ClassVar[str] = "lower OPTIM.LR or use PREC fp32"
    saved_as: ClassVar[str] = "prompt_learner"  # folder of the checkpoints in the output folder
    published: ClassVar[tuple[str, ...]] = ()  # names of its learned tensors in published checkpoints; * is any text
    published_file: ClassVar[str] = ""  # written by its published code instead of checkpoints (`of_published_file`)
    published_unused: ClassVar[tuple[str, ...]] = ()  # tensors there that look learned, and take no part in it
    persistent_workers: ClassVar[bool] = True  # of the loaders of the toolbox
    dm: Any
    evaluator: Any

    def __init_subclass__(cls) -> None:
        if "defaults" in vars(cls):
            if "Settings" in vars(cls):
                raise TypeError(f"{cls.__name__} has both Settings and defaults: define one of them")
            cls.Settings = settings_from(cls.defaults, cls.Settings)
        cls.config_folder = vars(cls).get("config_folder", cls.__name__)

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
        """The method's settings in a configuration.

        Raises:
            UsageError: a value cannot work.
        """
        return cls.Settings.from_cfg(cfg.TRAINER.get(cls.section(), {}), cls.section())

    @classmethod
    def vision_lengths(cls, settings: Any, layers: int) -> list[int] | None:
        """Number of vision prompts in the input of each layer, for plots; None if the method does not say."""
        return None

    @cached_property
    def settings(self) -> Any:
        """The method's settings in this run, an instance of `Settings`."""
        return self.settings_of(self.cfg)

    @cached_property
    def choices(self) -> list[Choice]:
        """What training chooses on images, and on which (data_use.py). A method that chooses a setting adds it."""
        return epoch_choice(self.cfg, self.dataset_title, self.dm.dataset) if self.learns else []

    @cached_property
    def class_names(self) -> list[str]:
        """The names of the run's classes, in the order of their labels, without underscores.

        Raises:
            UsageError: a label has no name, so that other labels would get wrong names.
        """
        names, n_classes = self.dm.dataset.classnames, self.dm.num_classes
        if len(names) != n_classes:
            raise UsageError(
                f"{self.dataset_title} has {len(names)} class names for labels 0 to {n_classes - 1}",
                "number its classes without gaps",
            )
        return [name.replace("_", " ") for name in names]

    @property
    def dataset_title(self) -> str:
        """The name of the dataset, as results and checkpoints have it."""
        return self.cfg.DATASET.get("TITLE", "") or self.cfg.DATASET.NAME

    @cached_property
    def dataset_template(self) -> str:
        """The dataset's sentence with {} for a class name."""
        return getattr(self.dm.dataset, "template", TEMPLATE)

    def template(self, published: Mapping[str, str] | None = None) -> str:
        """The sentence with {} for a class name: the user's, else the method's, else the dataset's.

        Args:
            published: the method's own sentences for some datasets, by their registered names.
        """
        own = "" if self.cfg.DATASET.get("TEMPLATE", "") else (published or {}).get(self.cfg.DATASET.NAME, "")
        return own or self.dataset_template
