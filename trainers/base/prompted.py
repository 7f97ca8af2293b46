"""A frozen CLIP under learned prompts: the model of every method."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip import CLIP, TOWERS, Schedule, TextPrompts


class PromptLearner(nn.Module):
    """The learned vectors of a method and where they go.

    Its parameters are learned, and those of `extra_modules`: modules that published checkpoints keep beside the prompt
    learner, by their names there (`image_encoder`, `text_encoder`).
    """

    ids: Tensor  # a buffer, (classes, context length): the token ids of the texts
    extra_modules: Mapping[str, nn.Module] = {}
    name: str = "prompt_learner"  # of this module in published checkpoints
    logit_scale: float | None = None  # in place of CLIP's own

    def text(self, image_features: Tensor) -> TextPrompts:
        """The input of the text tower. Only methods like CoCoOp use `image_features` (batch, joint), normalised."""
        raise NotImplementedError

    def vision(self) -> Schedule:
        """The prompts of the image tower."""
        return ()

    def reader(self) -> "Reader | None":
        """What makes an image's features of both outputs of the image tower; None: they are the image feature."""
        return None


class Reader(nn.Module):
    """Makes the features of an image from the image feature and what the last layer made of the prompts."""

    def forward(self, image: Tensor, prompts: Tensor, learned: bool) -> Tensor:
        """
        Args:
            image, prompts: as `clip.plain.encode_image_and_prompts` returns them.
            learned: whether the prompts were learned on the classes that the image is compared with.

        Returns:
            (batch, joint), fp32: its product with a normalised text feature is the similarity of image and class.
        """
        raise NotImplementedError


class PromptedCLIP(nn.Module):
    """Images -> logits through a frozen CLIP under learned prompts.

    The CLIP is not a registered submodule: `parameters()`, `state_dict()` and the optimiser have the learned prompts
    and nothing else, under the names of the published checkpoints (`prompt_learner.ctx`, ...). `to()`, `half()` and
    the like reach it all the same.

    Args:
        clip: the frozen backbone.
        prompt_learner: the prompts.
        towers: the form of the towers, a key of `clip.TOWERS`.

    Attributes:
        classes_learned: whether the prompts were learned on the classes of the texts; some methods then read images in
            another way.
    """

    prompt_learner: PromptLearner

    def __init__(self, clip: CLIP, prompt_learner: PromptLearner, towers: str = "fast"):
        super().__init__()
        self.add_module(prompt_learner.name, prompt_learner)
        self.__dict__["prompt_learner"] = prompt_learner  # by this name, too, but registered only once
        for name, tower in prompt_learner.extra_modules.items():
            self.add_module(name, tower)
        self._frozen = (clip,)
        self.towers: Any = TOWERS[towers]
        self.classes_learned = True

    @property
    def clip(self) -> CLIP:
        return self._frozen[0]

    def _apply(self, fn: Callable, recurse: bool = True):
        self.clip._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def image_features(self, images: Tensor) -> Tensor:
        """(batch, 3, H, W) -> (batch, joint), fp32, normalised unless the method has a `reader`."""
        if reader := self.prompt_learner.reader():
            return reader(*self.image_and_prompts(images), self.classes_learned)
        return self.of_tower(self.towers.encode_image(self.clip, images, self.prompt_learner.vision()))

    def of_tower(self, outputs: Tensor) -> Tensor:
        """Image features of the image tower's outputs (batch, joint), for a method without a `reader`."""
        return normalize(outputs)

    def image_and_prompts(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs of the image tower that a `Reader` reads."""
        return self.towers.encode_image_and_prompts(self.clip, images, self.prompt_learner.vision())

    def text_features(self, image_features: Tensor) -> Tensor:
        """(classes, joint), or (batch, classes, joint) where the text depends on the image; normalised, fp32."""
        return normalize(self.towers.encode_text(self.clip, self.prompt_learner.text(image_features)))

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """(batch, classes): scaled cosine similarities, always in fp32."""
        with torch.autocast(image_features.device.type, enabled=False):
            similarity = (text_features @ image_features.unsqueeze(-1)).squeeze(-1)
            return (self.prompt_learner.logit_scale or self.clip.logit_scale.exp().float()) * similarity

    def forward(self, images: Tensor) -> Tensor:
        image_features = self.image_features(images)
        return self.logits(image_features, self.text_features(image_features))


def normalize(features: Tensor) -> Tensor:
    """To fp32 and unit length."""
    return F.normalize(features.float(), dim=-1)
