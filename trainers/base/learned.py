"""The part of a trainer that reads and writes learned prompts."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from dassl.utils import load_checkpoint
from torch import Tensor, nn
from yacs.config import CfgNode

from clip import CLIP, weights_sha256
from common.errors import UsageError, one_line
from common.files import checksum
from common.version import __version__, source

from .build import without_training
from .checkpoints import (
    check_tensor,
    differences,
    find_checkpoint,
    is_checkpoint,
    is_metadata,
    select_prompts,
    tensors_of,
)
from .data_use import Choice, Phase, fit_phase, inherited
from .method import Method
from .prompted import PromptedCLIP, PromptLearner


class LearnedPrompts(Method):
    """A method with the prompts that a checkpoint holds, which belong to some classes and weights."""

    Model: ClassVar[type[PromptedCLIP]] = PromptedCLIP
    saves_learner: ClassVar[bool] = False  # whether a checkpoint has the prompt learner alone, not the whole model
    # Names of tensors with values for each class: others have those that the method starts from.
    of_learned_classes: ClassVar[tuple[str, ...]] = ()
    model: PromptedCLIP
    loaded_epoch: int
    loaded_sha256: str

    def __init__(self, cfg: CfgNode):
        self.inherited_choices: list[Choice] | None = []  # behind prompts that were loaded; None: they do not say
        self.inherited_phases: list[Phase] | None = []  # what these were learned from; None: they do not say
        super().__init__(cfg)

    def inherit(self, choices: list[Choice]) -> None:
        """Add choices that were made before this run to those that its checkpoints name."""
        self.inherited_choices = [*(self.inherited_choices or []), *choices]

    def build_prompts(self, clip: CLIP, classnames: list[str]) -> PromptLearner:
        """The prompts of this method for a backbone and class names (no underscores), on the backbone's device.

        Predictions have no images: see `build.without_training` for what this may use.
        """
        raise NotImplementedError

    def saved_module(self) -> nn.Module:
        """The module whose state dict is the checkpoint."""
        return self.model.prompt_learner if self.saves_learner else self.model

    def checkpoint_metadata(self) -> dict[str, Any]:
        """The facts in a checkpoint besides its learned tensors: plain values only."""
        choices: dict[str, Any] = {"choices": self.choices}
        if self.inherited_choices is not None:
            choices["inherited_choices"] = self.inherited_choices
        fit = {"fit": [*(self.inherited_phases or []), self.fit_phase]}
        return self.prompts_metadata() | choices | fit | {"commit": source()["commit"] or ""}

    @cached_property
    def fit_phase(self) -> Phase:
        """The images that training learns from."""
        return fit_phase(self.cfg, self.dataset_title, self.dm.dataset, len(self.class_names))

    def prompts_metadata(self) -> dict[str, Any]:
        """The part of `checkpoint_metadata` that says what the prompts fit."""
        return {
            "method": type(self).__name__,
            "settings": asdict(self.settings),
            "backbone": self.cfg.MODEL.BACKBONE.NAME,
            "weights_sha256": weights_sha256(self.cfg.MODEL.BACKBONE.NAME),
            "dataset": self.dataset_title,
            "class_names": self.class_names,
            "version": __version__,
        }

    @classmethod
    def checkpoint_in(cls, directory: str, epoch: int | None) -> str:
        """Path of the checkpoint that `load_model` loads; UsageError if there is none."""
        return find_checkpoint(directory, cls.saved_as, epoch, cls.__name__, cls.published_file)

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load learned prompts from a checkpoint of this project or of the published code, at any class count.

        Args:
            directory: the output folder of a training run; nothing is loaded if empty (as everywhere in Dassl).
            epoch: which epoch's; None means the best on validation or, without validation, the newest.

        Raises:
            UsageError: no checkpoint there, or its prompts do not fit the settings, or are of other weights or classes.
        """
        if not directory:
            print("Note that load_model() is skipped as no pretrained model is given")
            return
        path = self.checkpoint_in(directory, epoch)
        checkpoint = load_checkpoint(path)
        if os.path.basename(path) == self.published_file:
            checkpoint = self.of_published_file(checkpoint, path)
        if not is_checkpoint(checkpoint):
            raise UsageError(f"{path} is not a checkpoint of a training run", "check --model-dir", path)
        self.load_prompts(checkpoint, path)
        self.loaded_sha256 = checksum(Path(path))
        if type(self.model.prompt_learner).image is not PromptLearner.image:
            kind = "learned" if self.model.classes_learned else "new"
            print(f"Images are read as those of {kind} classes")
        written = checkpoint.get("metadata") or {}
        if not written.get("weights_sha256"):
            print(f"{path} does not say on which weights its prompts were learned: check that they are these")
        if changed := differences({"settings": written.get("settings")}, self.prompts_metadata()):
            print(f"The prompts were learned with other settings: {one_line(changed)}")
        print(f"Loading prompts from {path} (epoch {checkpoint['epoch']})")

    def of_published_file(self, content: Any, path: str) -> Any:
        """A checkpoint, with `state_dict` and `epoch`, from the content of a `published_file`.

        Raises:
            UsageError: it is of other settings.
        """
        raise NotImplementedError

    def load_prompts(self, checkpoint: Mapping[str, Any], path: str) -> None:
        """Load the learned prompts in the content of a checkpoint; errors are as for `load_model`, and name `path`."""
        module, metadata, written = self.saved_module(), self.prompts_metadata(), checkpoint.get("metadata") or {}
        self.check_weights(written, path)
        state, expected = tensors_of(checkpoint), module.state_dict()
        kept: dict[str, Tensor] = {}
        if not self.same_classes(written):
            of_classes, known = self.tensors_of_classes(), self.known_classes(written)
            unknown = [name for name in of_classes if not any(fnmatchcase(name, p) for p in self.of_learned_classes)]
            if unknown and len(known) < len(self.class_names):
                what = f"{path} has {unknown[0]} with values for each class that it was learned on"
                raise UsageError(what, "test it on these classes", path)
            if known:
                for name, dim in of_classes.items():
                    shape = list(expected[name].shape)
                    if dim is not None:
                        shape[dim] = len(self.learned_names(written))
                    check_tensor(name, state, shape, path, "use the settings and the backbone it was trained with")
            kept = self.of_known_classes(state, expected, of_classes, known)
            state, expected = (
                {k: v for k, v in tensors.items() if k not in of_classes} for tensors in (state, expected)
            )
        found = select_prompts({**checkpoint, "state_dict": state}, path, metadata, expected)
        module.load_state_dict({**found, **kept}, strict=len(expected) == len(module.state_dict()))
        self.loaded_epoch = checkpoint["epoch"]
        self.inherited_choices, self.inherited_phases = inherited(checkpoint)
        self.model.classes_learned = self.were_learned(written)

    def known_classes(self, written: Mapping[str, Any]) -> dict[int, int]:
        """The labels of the classes that prompts were learned on, in this run and in theirs, by their metadata.

        Classes of another dataset count only if all of them have learned names: else a name may mean something else.
        """
        before = self.learned_names(written)
        places = {name: place for place, name in reversed(list(enumerate(before)))}
        found = {label: places[name] for label, name in enumerate(self.class_names) if name in places}
        same_dataset = "dataset" in written and self.same_dataset(written)
        return found if same_dataset or len(found) == len(self.class_names) else {}

    def of_known_classes(
        self,
        state: Mapping[str, Tensor],
        expected: Mapping[str, Tensor],
        of_classes: Mapping[str, int | None],
        known: Mapping[int, int],
    ) -> dict[str, Tensor]:
        """The tensors of a checkpoint (`state`) with values for each class, for the classes of this run (`expected`).

        Args:
            of_classes, known: what `tensors_of_classes` and `known_classes` returned.
        """
        if of_classes:
            print(f"The prompts were learned on {len(known)} of these {len(self.class_names)} classes")
        kept, device = {}, self.model.frozen.logit_scale.device
        for name, dim in of_classes.items() if known else ():
            tensor = state[name].to(expected[name])
            if dim is not None:
                here, there = (torch.tensor(list(labels), device=device) for labels in (known.keys(), known.values()))
                tensor = expected[name].clone().index_copy_(dim, here, tensor.index_select(dim, there))
            kept[name] = tensor
        return kept

    def tensors_of_classes(self) -> dict[str, int | None]:
        """The learned tensors whose shape depends on the number of classes, by their names in a checkpoint.

        Each has the number of that dimension; None if it has none and is left out of a test on other classes.
        """
        names = [*self.class_names, "one more"]
        with torch.random.fork_rng(devices=[]):
            clip = self.model.frozen
            device = clip.logit_scale.device
            other = without_training(type(self), self.cfg, names, self.dataset_template, device)
            with device:
                other.model = self.Model(clip, other.build_prompts(clip, names))
        shapes: dict[str, Tensor] = other.saved_module().state_dict()
        dims: dict[str, int | None] = {}
        for key, value in self.saved_module().state_dict().items():
            sizes = zip(value.shape, shapes[key].shape, strict=True)
            if differing := [dim for dim, (here, there) in enumerate(sizes) if here != there]:
                dims[key] = differing[-1]
        return dims

    def learned_names(self, written: Mapping[str, Any]) -> list[str]:
        """The classes that prompts were learned on, by the metadata of their checkpoint.

        Published checkpoints do not say it: on those of this run, unless these are the `new` ones.
        """
        names = written.get("class_names")
        if isinstance(names, list):
            return [name.replace("_", " ") for name in names]
        return [] if self.cfg.DATASET.get("SUBSAMPLE_CLASSES", "all") == "new" else self.class_names

    def same_dataset(self, written: Mapping[str, Any]) -> bool:
        """Whether prompts were learned on the dataset of this run, or their checkpoint does not say on which."""
        return written.get("dataset", self.dataset_title) in (self.dataset_title, self.cfg.DATASET.NAME)

    def same_classes(self, written: Mapping[str, Any]) -> bool:
        """Whether prompts were learned on the classes of this run, in the same order."""
        return self.learned_names(written) == self.class_names

    def were_learned(self, written: Mapping[str, Any]) -> bool:
        """Whether prompts were learned on all classes of this run."""
        names = self.learned_names(written)
        same_dataset = "class_names" not in written or self.same_dataset(written)
        return same_dataset and set(self.class_names) <= set(names)

    def check_metadata(self, written: Mapping[str, Any]) -> None:
        """Dassl calls this with the metadata of a checkpoint that a run resumes from.

        Raises:
            UsageError: the run had other weights or other images, or the metadata is damaged.
        """
        if not is_metadata(written):
            raise UsageError("the metadata of the run's checkpoints is damaged", "choose another --output-dir")
        self.check_weights(written, "the run to resume")
        images = (written.get("fit") or [{}])[-1].get("sha256", self.fit_phase["sha256"])
        if images != self.fit_phase["sha256"]:
            what = "the training images, their order or their classes are not those that the run to resume began with"
            raise UsageError(what, "restore the files of the dataset, or choose another --output-dir")
        before, now = (
            f"version {facts.get('version')} (commit {facts.get('commit', '')[:9] or 'unknown'})"
            for facts in (written, self.checkpoint_metadata())
        )
        if written.get("version") and before != now:
            what = "The results will be of two versions of this project"
            print(f"{what}: the run was trained with {before} and with {now}")

    def check_weights(self, written: Mapping[str, Any], what: str) -> None:
        """Raise UsageError if prompts, by their metadata, were learned on other weights; `what` says whose they are."""
        metadata = self.prompts_metadata()
        before, now = written.get("weights_sha256"), metadata["weights_sha256"]
        if before and before != now:
            raise UsageError(
                f"{what} has prompts for other weights: SHA-256 {before[:12]}... ({written.get('backbone')}), "
                f"not {now[:12]}... ({metadata['backbone']})",
                "give the backbone that they were learned on, by --backbone",
            )
