"""The learned prompts of a method in checkpoints: what is saved beside them, and whose weights and
classes they fit.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip import weights_sha256
from common.errors import UsageError, one_line
from common.files import checksum
from common.names import plain
from common.records import Phase
from common.version import __version__, source

from .checkpoints import (
    PROMPTS,
    SAME_SETTINGS,
    check_tensor,
    described,
    differences,
    is_checkpoint,
    is_metadata,
    select_prompts,
    tensors_of,
)
from .compat import matches, read_checkpoint
from .data_use import fit_phase, inherited


@dataclass(frozen=True)
class LearnedClasses:
    """The classes that prompts were learned on, compared with those of a run.

    Classes of another dataset count in `checkpoint_labels` only if all of the run's have learned
    names: else a name may mean something else.
    """

    names: list[str]  # in the order of their labels
    is_identical: bool  # whether the run has these classes, in the same order
    covers_run: bool  # whether all classes of the run are among them, in the same dataset
    # Of the classes that both have: the label in the run -> that in the checkpoint
    checkpoint_labels: Mapping[int, int]


class Checkpoints:
    """Saves and loads the learned tensors of a `Method` that has a model."""

    def __init__(self, method: Any):
        self.method = method

    # Saving and resuming

    def metadata(self) -> dict[str, Any]:
        """The facts in a checkpoint that say what its prompts fit: plain values only."""
        method = self.method
        backbone = method.cfg.MODEL.BACKBONE.NAME
        facts = {
            "method": type(method).__name__,
            "settings": asdict(method.settings),
            "backbone": backbone,
            "weights_sha256": weights_sha256(backbone),
            "dataset": method.dataset_title,
            "class_names": method.class_names,
            "version": __version__,
        }
        if method.plugin_sha256:
            facts["plugin_sha256"] = method.plugin_sha256
        return facts

    def training_metadata(self) -> dict[str, Any]:
        """`metadata`, and what the prompts were learned from and chosen on."""
        method = self.method
        facts = self.metadata()
        facts["choices"] = [choice.to_json() for choice in method.choices]
        if method.inherited_choices is not None:
            facts["inherited_choices"] = [choice.to_json() for choice in method.inherited_choices]
        phases = (*(method.inherited_phases or ()), self.fit_phase)
        facts["fit"] = [phase.to_json() for phase in phases]
        facts["commit"] = source()["commit"] or ""
        return facts

    @cached_property
    def fit_phase(self) -> Phase:
        """The images that training learns from."""
        method = self.method
        return fit_phase(
            method.cfg, method.dataset_title, method.images.dataset, len(method.class_names)
        )

    def check_resumed(self, written: Mapping[str, Any]) -> None:
        """Check that a run can resume from a checkpoint with this metadata. Raises UsageError if
        the run had other weights or other images, or the metadata is damaged."""
        if not is_metadata(written):
            fault = "the metadata of the run's checkpoints is damaged"
            raise UsageError(fault, "choose another --output-dir (scripts: OUT)")
        self.check_weights(written, "the run to resume")
        images = (written.get("fit") or [{}])[-1].get("sha256", self.fit_phase.sha256)
        if images != self.fit_phase.sha256:
            fault = (
                "the training images, their order or their classes are not those that the run to "
                "resume began with"
            )
            remedy = "restore the files of the dataset, or choose another --output-dir"
            raise UsageError(fault, f"{remedy} (scripts: OUT)")
        before = shown_version(written)
        now = shown_version({"version": __version__, "commit": source()["commit"] or ""})
        if written.get("version") and before != now:
            fault = "The results will be of two versions of this project"
            print(f"{fault}: the run was trained with {before} and with {now}")

    # Loading

    def read(self, directory: str, epoch: int | None = None) -> None:
        """Load learned prompts from a checkpoint of this project or of the published code, at any
        class count.

        Args:
            directory: the output folder of a training run; nothing is loaded if empty (as
                everywhere in Dassl).
            epoch: which epoch's; None means the best on validation or, without validation, the
                newest.

        Raises:
            UsageError: no checkpoint there, or its prompts do not fit the settings, or are of other
                weights or classes.
        """
        if not directory:
            print("Note that load_model() is skipped as no pretrained model is given")
            return
        method = self.method
        path = method.checkpoint_in(directory, epoch)
        checkpoint = read_checkpoint(path)
        if os.path.basename(path) == method.published_file:
            checkpoint = method.of_published_file(checkpoint, path, method.settings)
            checkpoint["epoch"] = method.cfg.OPTIM.MAX_EPOCH
        if os.path.basename(path) == PROMPTS:
            checkpoint["metadata"] = described(path)
        if not is_checkpoint(checkpoint):
            raise UsageError(
                f"{path} is not a checkpoint of a training run", "check --model-dir", path
            )
        self.load_prompts(checkpoint, path)
        method.loaded_sha256 = checksum(Path(path))
        if method.model.prompt_learner.changes_image:
            kind = "learned" if method.model.classes_learned else "new"
            print(f"Images are read as those of {kind} classes")
        self.print_differences(checkpoint.get("metadata") or {}, path)
        print(f"Loading prompts from {path} (epoch {checkpoint['epoch']})")

    def print_differences(self, written: Mapping[str, Any], path: str) -> None:
        """Facts that the metadata of a checkpoint lacks, or that are of another run."""
        if not written.get("weights_sha256"):
            fault = f"{path} does not say on which weights its prompts were learned"
            print(f"{fault}: check that they are these")
        if changed := differences({"settings": written.get("settings")}, self.metadata()):
            print(f"The prompts were learned with other settings: {one_line(changed)}")
        if written.get("plugin_sha256", "") != self.method.plugin_sha256:
            change = f"The prompts were learned by another version of {type(self.method).__name__}"
            print(f"{change}: its file has changed")

    def load_prompts(self, checkpoint: Mapping[str, Any], path: str) -> None:
        """Load the learned prompts in the content of a checkpoint; errors are as for `read`, and
        name `path`.
        """
        method = self.method
        module = self.method.saved_module()
        checkpoint = method.before_load(checkpoint, path)
        written = checkpoint.get("metadata") or {}
        self.check_weights(written, path)
        classes = self.classes(written)
        state = tensors_of(checkpoint)
        expected = module.state_dict()
        dims = {} if classes.is_identical else self.class_dims()
        by_class = self.by_class(state, expected, dims, classes, path)
        rest = {**checkpoint, "state_dict": without(state, dims)}
        shared = select_prompts(rest, path, self.metadata(), without(expected, dims))
        module.load_state_dict({**shared, **by_class}, strict=not dims)
        method.loaded_epoch = checkpoint["epoch"]
        method.inherited_choices, method.inherited_phases = inherited(checkpoint)
        method.model.classes_learned = classes.covers_run
        method.after_load(classes)

    def by_class(
        self,
        state: Mapping[str, Tensor],
        expected: Mapping[str, Tensor],
        dims: Mapping[str, tuple[int, ...]],
        classes: LearnedClasses,
        path: str,
    ) -> dict[str, Tensor]:
        """The tensors with values for each class, for the classes of this run: as they start, for
        unknown classes.

        Args:
            state, expected: the tensors of the checkpoint `path`, and those of the model.
            dims: what `class_dims` returned.

        Raises UsageError if a class has no values, or a tensor does not fit.
        """
        self.check_known(dims, len(classes.checkpoint_labels), path)
        tensors = {}
        for name, class_axes in dims.items() if classes.checkpoint_labels else ():
            start = expected[name]
            shape = list(start.shape)
            for axis in class_axes:
                shape[axis] = len(classes.names)
            check_tensor(name, state, start.new_empty(shape), path, SAME_SETTINGS)
            values = state[name].to(start)
            if class_axes:
                values = of_labels(start, values, class_axes, classes.checkpoint_labels)
            tensors[name] = values
        return tensors

    def check_known(self, dims: Mapping[str, tuple[int, ...]], known: int, path: str) -> None:
        """Raise UsageError if a class needs values that `path` has of the learned classes only;
        else print how many classes are `known`.
        """
        if not dims:
            return
        count = len(self.method.class_names)
        alone = [name for name in dims if not matches(name, self.method.tensors_by_class)]
        if alone and known < count:
            fault = f"{path} has {alone[0]} with values for each class that it was learned on"
            raise UsageError(fault, "test it on these classes", path)
        print(f"The prompts were learned on {known} of these {count} classes")

    def class_dims(self) -> dict[str, tuple[int, ...]]:
        """The dimensions that count classes of the learned tensors that have some, by their names
        in a checkpoint.

        A tensor without one may be there too: it is left out of a test on other classes.
        """
        others = self.with_one_more_class().saved_module().state_dict()
        dims = {}
        for name, tensor in self.method.saved_module().state_dict().items():
            shape = others[name].shape
            axes = tuple(axis for axis in range(tensor.dim()) if tensor.shape[axis] != shape[axis])
            if axes:
                dims[name] = axes
        return dims

    def with_one_more_class(self) -> Any:
        """The same method for one class more, with a model on the same frozen CLIP."""
        method = self.method
        clip = method.model.frozen
        names = [*method.class_names, "one more"]
        sentences = dict(method.sentences)
        if sentences:
            sentences["one more"] = next(iter(sentences.values()))
        device = clip.logit_scale.device
        # The generators that `build_prompts` may move
        drawing = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=drawing), device:
            classes = (names, method.dataset_template, sentences)
            other = type(method)(method.cfg, classes, device)
            other.model = method.Model(clip, other.build_prompts(clip, names))
        return other

    def check_start(self, checkpoint: Mapping[str, Any], path: str) -> None:
        """Raise UsageError if training would start from values for each class in the checkpoint
        `path`, and these are of other classes.
        """
        if self.classes(checkpoint.get("metadata") or {}).is_identical:
            return
        tensors = sorted(self.class_dims().keys() & tensors_of(checkpoint).keys())
        if tensors:
            fault = f"{path} has {tensors[0]} with values for each class that it was learned on"
            raise UsageError(fault, "start from a run on these classes, in this order", path)

    # Whose prompts

    def classes(self, written: Mapping[str, Any]) -> LearnedClasses:
        """The classes that prompts were learned on, by the metadata of their checkpoint.

        Published checkpoints do not say it: on those of this run, unless these are the `new` ones.
        """
        method = self.method
        here = self.method.class_names
        names = here if method.cfg.DATASET.get("SUBSAMPLE_CLASSES", "all") != "new" else []
        if isinstance(written.get("class_names"), list):
            names = list(map(plain, written["class_names"]))
        same_dataset = written.get("dataset", method.dataset_title) in (
            method.dataset_title,
            method.cfg.DATASET.NAME,
        )
        places = {name: place for place, name in reversed(list(enumerate(names)))}
        labels = {label: places[name] for label, name in enumerate(here) if name in places}
        covers_run = set(here) <= set(names) and ("class_names" not in written or same_dataset)
        usable = len(labels) == len(here) or ("dataset" in written and same_dataset)
        return LearnedClasses(names, names == here, covers_run, labels if usable else {})

    def check_weights(self, written: Mapping[str, Any], owner: str) -> None:
        """Raise UsageError if prompts, by their metadata, were learned on other weights; `owner`
        is what they belong to.
        """
        metadata = self.metadata()
        before = written.get("weights_sha256")
        now = metadata["weights_sha256"]
        if before and before != now:
            others = (
                f"SHA-256 {before[:12]}... ({written.get('backbone')}), not {now[:12]}... "
                f"({metadata['backbone']})"
            )
            remedy = "give the backbone that they were learned on, by --backbone"
            raise UsageError(f"{owner} has prompts for other weights: {others}", remedy)


def shown_version(facts: Mapping[str, Any]) -> str:
    return f"version {facts.get('version')} (commit {facts.get('commit', '')[:9] or 'unknown'})"


def without(tensors: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def of_labels(
    start: Tensor, values: Tensor, class_axes: Sequence[int], labels: Mapping[int, int]
) -> Tensor:
    """`start`, with the values of the classes whose labels are known: that in `start` -> that in
    `values`.
    """
    here = index_of(start.shape, class_axes, list(labels))
    there = index_of(values.shape, class_axes, list(labels.values()))
    return start.clone().index_put_(here, values[there])


def index_of(
    shape: Sequence[int], class_axes: Sequence[int], labels: list[int]
) -> tuple[Tensor, ...]:
    """The index of the values of some classes in a tensor of this shape, whose `class_axes` count
    classes.
    """
    rows = [
        torch.tensor(labels) if axis in class_axes else torch.arange(size)
        for axis, size in enumerate(shape)
    ]
    return torch.meshgrid(*rows, indexing="ij")
