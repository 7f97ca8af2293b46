"""Everything that `python tools/inspect.py` finds out about a model, as plain numbers: the content of inspect.json."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clip import TextPrompts
from common.errors import one_line
from trainers.base.prompted import PromptedCLIP, PromptLearner

from ..classifier import PromptedClassifier
from .rollout import compared_roll_outs, shares
from .tower import layers_of, origins, shows_attention
from .words import nearest_words

Content = dict[str, Any]
CLS, PATCHES, NEW = "CLS", "patches", "new"  # groups of tokens; others are `carried 1`, `carried 2`, ...


class Group(NamedTuple):
    """A group of tokens in the input of a layer, for each image.

    Attributes:
        tokens: how many there are.
        share: (batch,) of CLS's attention, mean over the heads.
        to_entry: (batch,), mean cosine similarity of carried prompts with themselves at the layer that they entered
            before; None for other tokens.
    """

    tokens: int
    share: Tensor
    to_entry: Tensor | None


def measure_layers(model: PromptedCLIP, images: Tensor) -> Iterator[dict[str, Group]]:
    """The groups of every layer's input: CLS, patches, the prompts new there, and those carried over 1, 2, ... layers.

    Args:
        model: one whose image tower `shows_attention`.
        images: (batch, 3, H, W).
    """
    at_entry: Tensor | None = None  # (batch, prompts, width)
    for layer, (tokens, attention, entered) in enumerate(layers_of(model.clip, images, model.prompt_learner.vision())):
        share = attention[:, :, 0].mean(dim=1).cpu()  # (batch, T)
        prompts = tokens[:, tokens.shape[1] - len(entered) :].float().cpu()
        kept = prompts[:, :0] if at_entry is None else at_entry[:, : len(entered) - entered.count(layer)]
        at_entry = torch.cat([kept, prompts[:, kept.shape[1] :]], dim=1)
        to_entry = F.cosine_similarity(prompts, at_entry, dim=-1)

        patches = tokens.shape[1] - len(entered)  # the position behind them
        groups = {
            CLS: Group(1, share[:, 0], None),
            PATCHES: Group(patches - 1, share[:, 1:patches].sum(dim=1), None),
        }
        for age in sorted({layer - origin for origin in entered}):
            own = torch.tensor([layer - origin == age for origin in entered])
            of_group = Group(int(own.sum()), share[:, patches:][:, own].sum(dim=1), to_entry[:, own].mean(dim=1))
            groups[f"carried {age}" if age else NEW] = of_group if age else of_group._replace(to_entry=None)
        yield groups


def mean_over_images(batches: Sequence[Sequence[dict[str, Group]]]) -> list[Content]:
    """An entry for every layer, from what `measure_layers` found in each batch."""
    layers = []
    for layer, parts in enumerate(zip(*batches, strict=True)):
        total = sum(group.tokens for group in parts[0].values())
        groups = {}
        for name, (tokens, _, to_entry) in parts[0].items():
            share = torch.cat([part[name].share for part in parts]).double().mean().item()
            groups[name] = {"tokens": tokens, "share": share, "times_equal": share * total / tokens}
            if to_entry is not None:
                cosine = torch.cat([part[name].to_entry for part in parts]).double().mean().item()
                groups[name]["cosine_to_entry"] = cosine
        layers.append({"layer": layer, "tokens": total, "groups": groups})
    return layers


class Measures:
    """What images show of a model; `add` takes them in batches.

    Args:
        classifier: the model.
        class_names: instead of its own, or None.
    """

    def __init__(self, classifier: PromptedClassifier, class_names: Sequence[str] | None):
        self.classifier, self.names = classifier, list(class_names or classifier.class_names)
        self.model: PromptedCLIP = classifier.model_for(class_names)
        self.batches: list[list[dict[str, Group]]] = []
        self.features: list[Tensor] = []
        self.images = 0

    def add(self, images: Tensor) -> None:
        """Images (batch, 3, H, W) by the classifier's transform."""
        images = images.to(self.classifier.device)
        self.images += len(images)
        if shows_attention(self.model.clip) and self.model.prompt_learner.vision():
            self.batches.append(list(measure_layers(self.model, images)))
        self.features.append(self.model.image_features(images))

    def summary(self, k: int, files: Sequence[Path], pixels: Tensor) -> Content:
        """The content of inspect.json.

        Args:
            k: words for each text vector.
            files, pixels: the images of the roll-out, and the same as `add` takes them.
        """
        description, clip, learner = self.classifier.description, self.model.clip, self.model.prompt_learner
        text = TextPrompts(torch.empty(0))  # of a method without text, such as a linear probe
        if type(learner).text is not PromptLearner.text:  # CoCoOp's depends on the images
            nothing = torch.zeros(1, clip.visual.output_dim, device=self.classifier.device)
            text = learner.text(torch.cat(self.features or [nothing]))
        schedule = {"text": origins(text.deep, len(clip.transformer.resblocks), text.n_ctx)}
        if learner.vision():
            schedule["image"] = origins(learner.vision(), len(clip.visual.transformer.resblocks))
        rolled = compared_roll_outs(self.classifier, pixels)
        return {
            "model": {
                "source": one_line(self.classifier.source),
                "method": description.method,
                "settings": description.settings,
                "backbone": description.backbone,
                "dataset": description.dataset,
                "classes": self.names,
            },
            "images": self.images,
            "schedule": {tower: layers for tower, layers in schedule.items() if any(layers)},
            "words": nearest_words(clip, text, self.names, k),
            "layers": mean_over_images(self.batches),
            "rollout": [
                {"image": one_line(file.name), "shares": {name: shares(part, n) for name, part in rolled.items()}}
                for n, file in enumerate(files if rolled else ())
            ],
        }
