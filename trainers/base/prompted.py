"""A frozen CLIP under learned prompts: the model of every method."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip import (
    CLIP,
    TOWERS,
    ImageOutput,
    Read,
    Schedule,
    TextPrompts,
    folded_weights,
    private_copy,
)

CLASSES = 2048  # whose texts are encoded at a time, if nothing is learned


class Declares:
    """Facts about the hooks of a class, such as `installs` about `install`. A class that defines a
    hook, itself or by a mixin, has it as a fact, unless it says otherwise.
    """

    declares: ClassVar[dict[str, tuple[str, ...]]] = {}  # the hooks of each fact

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        bases = [base for base in cls.__bases__ if issubclass(base, Declares)]
        for fact, hooks in cls.declares.items():
            for hook in hooks:
                inherited = [getattr(base, hook, None) for base in bases]
                if fact not in vars(cls) and getattr(cls, hook) not in inherited:
                    setattr(cls, fact, True)


class PromptLearner(Declares, nn.Module):
    """The learned vectors of a method and where they go.

    Its parameters are learned, and those of `extra_modules`: modules that published checkpoints
    keep next to the prompt learner, by their names there (`image_encoder`, `text_encoder`).
    """

    declares = {"installs": ("install",), "changes_image": ("image",)}
    installs: ClassVar[bool] = False  # whether `install` changes the CLIP
    changes_image: ClassVar[bool] = False  # whether `image` is more than the unit feature
    ids: Tensor  # a buffer, (classes, context length): the token ids of the texts
    extra_modules: Mapping[str, nn.Module] = {}
    name: str = "prompt_learner"  # of this module in published checkpoints
    logit_scale: float | None = None  # replaces CLIP's own
    read: Read = ()  # what `image` needs of the image tower besides the feature
    random_text: bool = (
        False  # whether texts in which nothing is learned differ from one training step to the next
    )

    def text(self, image_features: Tensor) -> TextPrompts:
        """The input of the text tower. Only methods like CoCoOp use `image_features` (batch,
        joint), normalised.
        """
        raise NotImplementedError

    def vision(self) -> Schedule:
        """The prompts of the image tower."""
        return ()

    def image(self, tower: ImageOutput, learned: bool) -> Tensor:
        """(batch, joint), fp32: the image features, whose product with a text feature is the
        similarity.

        Args:
            tower: the output of the image tower, with what `read` asks for.
            learned: whether the prompts were learned on the classes that the images are compared
                with.
        """
        return normalize(tower.feature)

    def install(self, clip: CLIP) -> None:
        """Put learned modules into a CLIP (`clip.adapt`, or replace its modules). It is a private
        copy.

        Register these modules in the prompt learner, too. The frozen weights are shared with the
        original, which remains in `PromptedCLIP.frozen`: do not change them.
        """


@dataclass(frozen=True)
class Output:
    """A forward pass."""

    images: Any  # (batch, 3, H, W), the input
    # The output of the image tower: the un-normalised feature and what the model reads
    tower: ImageOutput
    # (batch, joint), fp32, the features of the images, of unit length unless the method says
    # otherwise
    image: Tensor
    # (classes, joint), or (batch, classes, joint) where it depends on the image; fp32, of unit
    # length
    text: Tensor
    text_feature: Tensor  # the same, not normalised
    logits: Tensor  # (batch, classes), fp32


class PromptedCLIP(Declares, nn.Module):
    """Images -> logits through a frozen CLIP under learned prompts.

    The CLIP is not a registered submodule: `parameters()`, `state_dict()` and the optimiser have
    the learned prompts and nothing else, under the names of the published checkpoints
    (`prompt_learner.ctx`, ...). `to()`, `half()` and similar calls still change it.

    Args:
        clip: the frozen backbone.
        prompt_learner: the prompts.
        towers: the form of the towers, a key of `clip.TOWERS`.
    """

    declares = {
        "own_logits": ("logits",),
        "own_output": ("image_output", "of_tower", "output"),
    }
    own_logits: ClassVar[bool] = False  # whether `logits` are not scaled cosine similarities
    own_output: ClassVar[bool] = False  # whether features or logits are changed elsewhere
    prompt_learner: PromptLearner
    frozen: CLIP
    clip: CLIP  # it computes with `frozen`, or with a private copy for `PromptLearner.install`
    keeps_output = False
    last_output: Output | None = None  # of `forward`, within `reading`

    def __init__(self, clip: CLIP, prompt_learner: PromptLearner, towers: str = "fast"):
        super().__init__()
        self.add_module(prompt_learner.name, prompt_learner)
        self.__dict__["prompt_learner"] = (
            prompt_learner  # by this name, too, but registered only once
        )
        for name, tower in prompt_learner.extra_modules.items():
            self.add_module(name, tower)
        self.adapted = prompt_learner.installs
        self.__dict__["frozen"] = clip
        self.__dict__["clip"] = private_copy(clip) if self.adapted else clip
        if self.adapted:
            prompt_learner.install(self.clip)
        self.towers: Any = TOWERS[towers]
        # Of the image tower, by `output`, besides what the prompt learner needs
        self.read: Read = ()
        self.classes_learned = (
            True  # the classes of the texts; some methods then read images in another way
        )
        self._text: tuple[Any, Tensor] | None = (
            None  # a text feature that was kept, and what it is of
        )

    def _apply(self, fn: Callable, recurse: bool = True):
        self._text = None
        for clip in dict.fromkeys((self.clip, self.frozen)):
            clip._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True):
        self._text = None
        return super().train(mode)

    @contextmanager
    def reading(self, *parts: str) -> Iterator[None]:
        """Within it, `output` also reads these parts of the image tower, and `forward` leaves its
        `last_output`.
        """
        before = self.read
        self.read = {*([before] if isinstance(before, str) else before), *parts}
        self.keeps_output = True
        try:
            yield
        finally:
            self.read = before
            self.keeps_output = False
            self.last_output = None

    @property
    def features_are_frozen(self) -> bool:
        """Whether the output of the image tower is the feature of the frozen CLIP, and nothing
        else.
        """
        learner = self.prompt_learner
        return not (self.adapted or learner.vision() or learner.read or self.read)

    def image_tensors(self) -> dict[str, Tensor]:
        """The tensors that frozen image features depend on."""
        return self.clip.visual.state_dict()

    def image_output(self, images: Tensor | ImageOutput) -> ImageOutput:
        """(batch, 3, H, W) -> the output of the image tower under the prompts; an output is
        returned as it is.
        """
        if isinstance(images, ImageOutput):
            return images
        learner = self.prompt_learner
        reads = ([read] if isinstance(read, str) else read for read in (learner.read, self.read))
        return self.towers.encode_image(self.clip, images, learner.vision(), set().union(*reads))

    def of_tower(self, tower: ImageOutput) -> Tensor:
        """The features (batch, joint), fp32, of images with these outputs of the image tower."""
        return self.prompt_learner.image(tower, self.classes_learned)

    def image_features(self, images: Tensor | ImageOutput) -> Tensor:
        """(batch, 3, H, W) -> (batch, joint), fp32, of unit length unless the method says
        otherwise.
        """
        return self.of_tower(self.image_output(images))

    def text_prompts(self, image_features: Tensor) -> TextPrompts:
        """The input of the text tower, from image features (batch, joint)."""
        return self.prompt_learner.text(image_features)

    def encode_text(self, image_features: Tensor) -> Tensor:
        """(classes, joint), or (batch, classes, joint) where the texts depend on the image; not
        normalised.

        Texts that are the same for every image are encoded once, in training as well if nothing in
        them is learned and they are not `random_text`. The plain towers encode them for each batch,
        as the published code does.
        """
        training = torch.is_grad_enabled()
        state = (
            None
            if training
            else [(tensor.data_ptr(), tensor._version) for tensor in self.parameters()]
        )
        if self._text and self._text[0] == state:
            return self._text[1]
        prompts = self.text_prompts(image_features)
        parts = [prompts] if training else parts_of(prompts)
        text = torch.cat([self.towers.encode_text(self.clip, part) for part in parts])
        changes = training and self.prompt_learner.random_text
        if (
            text.dim() == 2
            and not text.requires_grad
            and not changes
            and self.towers is not TOWERS["plain"]
        ):
            self._text = state, text
        return text

    def text_features(self, image_features: Tensor) -> Tensor:
        """`encode_text` in fp32 and of unit length."""
        return self.of_text(self.encode_text(image_features))

    def of_text(self, feature: Tensor) -> Tensor:
        """What images are compared with, from the output of the text tower."""
        return normalize(feature)

    @property
    def scale(self) -> Any:
        """Of cosine similarities."""
        return self.prompt_learner.logit_scale or self.clip.logit_scale.exp().float()

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """(batch, classes): scaled cosine similarities, always in fp32."""
        with torch.autocast(image_features.device.type, enabled=False):
            similarity = (text_features @ image_features.unsqueeze(-1)).squeeze(-1)
            return self.scale * similarity

    def output(self, images: Tensor | ImageOutput, text_feature: Tensor | None = None) -> Output:
        """One forward pass: images (batch, 3, H, W) -> features and logits.

        Args:
            images: or the output of the image tower for them.
            text_feature: what `encode_text` returned, if it is known.
        """
        tower = self.image_output(images)
        image = self.of_tower(tower)
        text_feature = self.encode_text(image) if text_feature is None else text_feature
        text = self.of_text(text_feature)
        return Output(images, tower, image, text, text_feature, self.logits(image, text))

    def folded(self) -> dict[str, Tensor] | None:
        """The state dict of a plain CLIP that computes the image features of a test; None if there
        is none.
        """
        learner = self.prompt_learner
        if self.own_logits or self.own_output or learner.changes_image or learner.vision():
            return None
        return folded_weights(self.clip)

    def forward(self, images: Tensor | ImageOutput) -> Tensor:
        """(batch, 3, H, W) -> logits (batch, classes)."""
        output = self.output(images)
        if self.keeps_output:
            self.last_output = output
        return output.logits


def parts_of(prompts: TextPrompts) -> list[TextPrompts]:
    """The prompts of CLASSES classes at a time; all together if they differ by image."""
    rows = len(prompts.ids)
    if prompts.by_image or rows <= CLASSES:
        return [prompts]
    parts = []
    for first in range(0, rows, CLASSES):
        some = slice(first, first + CLASSES)
        ctx = prompts.ctx[some] if prompts.ctx is not None and prompts.by_class else prompts.ctx
        slots = None if prompts.slots is None else prompts.slots[some]
        deep = [
            replace(edit, add=edit.add[some]) if edit.add is not None and edit.by_sequence else edit
            for edit in prompts.deep
        ]
        parts.append(replace(prompts, ids=prompts.ids[some], ctx=ctx, slots=slots, deep=deep))
    return parts


def normalize(features: Tensor) -> Tensor:
    """To fp32 and unit length."""
    return F.normalize(features.float(), dim=-1)


def local_logits(model: PromptedCLIP, output: Output) -> Tensor:
    """The logits of each patch, as those of LoCoOp, (batch, patches, classes), fp32; `output` has
    `tower.local`.
    """
    local: Any = output.tower.local
    patches = normalize(local)  # (batch, patches, joint)
    if output.text.dim() == 3:
        return torch.stack([model.logits(*pair) for pair in zip(patches, output.text, strict=True)])
    return model.logits(patches.flatten(0, 1), output.text).unflatten(0, patches.shape[:2])
