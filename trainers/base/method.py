"""The base of all methods: their facts and settings, and the classes of a run or a prediction."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from yacs.config import CfgNode

from clip import CLIP, ImageOutput
from common.errors import UsageError
from common.names import plain
from common.records import Phase, SelectionRecord
from common.schema import Accepts

from .checkpoints import find_checkpoint
from .compat import build_transform
from .data_use import made_choices
from .learned import Checkpoints, LearnedClasses
from .prompted import PromptedCLIP, PromptLearner
from .settings import MethodSettings

TEMPLATE = "a photo of a {}."  # for a dataset that has none of its own


class Classes(NamedTuple):
    """The classes of a prediction: names in the order of their labels, without underscores; a
    sentence with {}; and sentences for some classes, by their names."""

    names: list[str]
    template: str = TEMPLATE
    sentences: Mapping[str, Sequence[str]] = {}


class Method:
    """A method with its settings, its model and its checkpoints. It predicts; a trainer
    (`PromptTrainer`) trains it.

    Args:
        cfg: the sections DATASET (NAME and TEMPLATE), INPUT, MODEL (BACKBONE.NAME) and TRAINER of a
            configuration.
        classes: to choose from.
        device: of the model, which `build.assemble_model` makes.
    """

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
    reads_sentences: ClassVar[bool] = (
        False  # True: it reads sentences for each class where it reads a template
    )
    needs_sentences: ClassVar[bool] = False  # True: it means nothing without them
    transfers: ClassVar[bool] = (
        True  # False: what it learns is of its own classes, so that it cannot tell new ones
    )
    kind: ClassVar[str] = (
        # Its other data, besides labelled images and class names: data_use.METHOD_KINDS
        "inductive"
    )
    caveat: ClassVar[str] = (
        ""  # what of its published results does not compare; tables show it, with a full stop
    )
    config_folder: ClassVar[str] = ""  # of its YAML files in configs/trainers/; by default its name
    plugin_file: ClassVar[str] = (
        ""  # of --plugin, with the method (`method_file`); empty for one of this project
    )
    plugin_sha256: ClassVar[str] = ""
    saved_as: ClassVar[str] = "prompt_learner"  # folder of the checkpoints in the output folder
    saves_learner: ClassVar[bool] = (
        False  # whether a checkpoint has the prompt learner alone, not the whole model
    )
    # Names of tensors with values for each class: other classes have those that the method starts
    # from.
    of_learned_classes: ClassVar[tuple[str, ...]] = ()
    # Names of its learned tensors in published checkpoints; * is any text
    published: ClassVar[tuple[str, ...]] = ()
    published_file: ClassVar[str] = (
        ""  # written by its published code instead of checkpoints (`of_published_file`)
    )
    # Tensors there that look learned, and take no part in it
    published_unused: ClassVar[tuple[str, ...]] = ()
    Model: ClassVar[type[PromptedCLIP]] = PromptedCLIP
    checkpoints_type: ClassVar[type[Checkpoints]] = Checkpoints
    cfg: CfgNode
    device: torch.device
    model: PromptedCLIP
    dm: Any  # of a trainer alone: Dassl's data manager
    # Behind prompts that were loaded; None: they do not say
    inherited_choices: Sequence[SelectionRecord] | None = ()
    # What these were learned from; None: they do not say
    inherited_phases: Sequence[Phase] | None = ()

    def __init_subclass__(cls) -> None:
        cls.config_folder = vars(cls).get("config_folder", cls.__name__)

    def __init__(self, cfg: CfgNode, classes: Classes, device: torch.device):
        self.cfg = cfg
        self.device = device
        self.class_names, self.dataset_template, self.sentences = Classes(*classes)

    # Hooks of a method

    def build_prompts(self, clip: CLIP, classnames: list[str]) -> PromptLearner:
        """The prompts of this method for a backbone and class names (no underscores), on the
        backbone's device.

        A prediction has no images: `self.dm` does not exist then.
        """
        raise NotImplementedError

    def finish_model(self) -> None:
        """Add to `self.model`, on its device, what is computed with the frozen CLIP and not
        learned.
        """

    def notes(self) -> list[str]:
        """Lines about the model for the log of a run."""
        return []

    def saved_module(self) -> nn.Module:
        """The module whose state dict is the checkpoint."""
        return self.model.prompt_learner if self.saves_learner else self.model

    @classmethod
    def of_published_file(cls, content: Any, path: str, settings: Any) -> Any:
        """A checkpoint, with `state_dict` and `epoch`, from the content of a `published_file`.
        Raises UsageError if it is of other settings."""
        raise NotImplementedError

    def before_load(self, checkpoint: Mapping[str, Any], path: str) -> Mapping[str, Any]:
        """The checkpoint to load instead of one from a file; the method may also prepare its
        tensors.
        """
        return checkpoint

    def after_load(self, classes: LearnedClasses) -> None:
        """Compute what depends on the classes that the prompts were learned on."""

    @classmethod
    def vision_lengths(cls, settings: Any, layers: int) -> list[int] | None:
        """Number of vision prompts in the input of each layer, for plots; None if the method does
        not say.
        """
        return None

    @classmethod
    def test_transform(cls, cfg: CfgNode) -> Callable[[Image.Image], Tensor]:
        """The transform of test images by the section INPUT: from a PIL image in RGB to a tensor
        (3, H, W).
        """
        return build_transform(cfg, is_train=False)

    @torch.no_grad()
    def model_inference(self, images: Tensor | ImageOutput) -> Tensor:
        """(batch, 3, H, W), or the output of the image tower for them -> logits (batch, classes),
        in fp32.
        """
        return self.model(images)

    # What follows from the configuration and the dataset

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
        """The method's settings in a configuration. Raises UsageError if a value cannot work."""
        return cls.Settings.from_cfg(cfg.TRAINER.get(cls.section(), {}), cls.section())

    @classmethod
    def check_settings(cls, cfg: CfgNode) -> None:
        """Raise UsageError if the settings cannot work, or it reads no sentences and has some, or
        needs them.
        """
        cls.settings_of(cfg)
        given = cfg.DATASET.get("SENTENCES", "")
        if given and not cls.reads_sentences:
            what = f"DATASET.SENTENCES has no effect: {cls.__name__} reads no sentences for classes"
            raise UsageError(what, "leave it out")
        if cls.needs_sentences and not given:
            raise UsageError(
                f"{cls.__name__} has no sentences for the classes", "give DATASET.SENTENCES FILE"
            )

    @classmethod
    def checkpoint_in(cls, directory: str, epoch: int | None) -> str:
        """Path of the checkpoint that `load_model` loads; UsageError if there is none."""
        return find_checkpoint(directory, cls.saved_as, epoch, cls.__name__, cls.published_file)

    @cached_property
    def settings(self) -> Any:
        """The method's settings in this run, an instance of `Settings`."""
        return self.settings_of(self.cfg)

    @cached_property
    def checkpoints(self) -> Checkpoints:
        return self.checkpoints_type(self)

    @cached_property
    def choices(self) -> list[SelectionRecord]:
        """What training chooses on images, and on which (data_use.py). A method that chooses a
        setting adds it.
        """
        return made_choices(self.cfg, self.dataset_title, self.dm.dataset) if self.learns else []

    def inherit(self, choices: list[SelectionRecord]) -> None:
        """Add choices that were made before this run to those that its checkpoints name."""
        self.inherited_choices = [*(self.inherited_choices or []), *choices]

    @cached_property
    def class_names(self) -> list[str]:
        """The names of the run's classes, in the order of their labels, without underscores. Raises
        UsageError if a label has no name, so that other labels would get wrong names."""
        names = self.dm.dataset.classnames
        n_classes = self.dm.num_classes
        if len(names) != n_classes:
            what = (
                f"{self.dataset_title} has {len(names)} class names for labels 0 to {n_classes - 1}"
            )
            raise UsageError(what, "number its classes without gaps")
        return list(map(plain, names))

    @cached_property
    def dataset_template(self) -> str:
        """The dataset's sentence with {} for a class name."""
        return getattr(self.dm.dataset, "template", TEMPLATE)

    @cached_property
    def sentences(self) -> Mapping[str, Sequence[str]]:
        """Sentences for each class, by its name in their file (DATASET.SENTENCES); empty without a
        file.
        """
        return getattr(self.dm.dataset, "sentences", {})

    @property
    def dataset_title(self) -> str:
        """The name of the dataset, as results and checkpoints have it."""
        return self.cfg.DATASET.get("TITLE", "") or self.cfg.DATASET.NAME

    def template(self, published: Mapping[str, str] | None = None) -> str:
        """The sentence with {} for a class name: the user's, else the method's, else the dataset's.

        `published` are the method's own sentences for some datasets, by their registered names.
        """
        own = (
            ""
            if self.cfg.DATASET.get("TEMPLATE", "")
            else (published or {}).get(self.cfg.DATASET.NAME, "")
        )
        return own or self.dataset_template

    def class_sentences(self, *templates: str) -> list[list[str]]:
        """The sentences of each class with its name: its own (DATASET.SENTENCES), or else the
        templates.
        """
        own = {plain(name): texts for name, texts in self.sentences.items()}
        return [
            [text.replace("{}", name) for text in own.get(name) or templates]
            for name in self.class_names
        ]
