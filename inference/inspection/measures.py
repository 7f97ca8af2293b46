"""Everything that `python tools/inspect.py` finds out about a model, as plain numbers: the content of inspect.json."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clip import Schedule, TextPrompts
from common.errors import one_line
from trainers.base.prompted import PromptedCLIP, PromptLearner

from ..classifier import PromptedClassifier
from ..images import spread
from .tower import NEW, LayerState, layer_states, origins, roll_out, shows_attention, token_groups
from .words import nearest_words

Content = dict[str, Any]
ROLLED_OUT = 6  # images of the roll-out
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue


class Group(NamedTuple):
    """A group of tokens in the input of a layer, for each image.

    Attributes:
        tokens: how many there are.
        share: (batch, heads) of CLS's attention.
        norm: (batch,), mean over the tokens.
        to_new: (batch,), mean cosine similarity with the prompts new at this layer; None without any.
        to_entry: (batch,), mean cosine similarity of prompts with themselves at the layer that they entered before;
            None for other tokens.
    """

    tokens: int
    share: Tensor
    norm: Tensor
    to_new: Tensor | None
    to_entry: Tensor | None


def measure_layers(model: PromptedCLIP, images: Tensor) -> Iterator[dict[str, Group]]:
    """The groups of every layer's input, on the CPU."""
    clip, schedule = model.clip, model.prompt_learner.vision()
    entered: Tensor | None = None  # (batch, prompts, width), each as it was when it entered
    layers = len(clip.visual.transformer.resblocks)
    for layer, (state, prompts) in enumerate(
        zip(layer_states(clip, images, schedule), origins(schedule, layers), strict=True)
    ):
        x = state.tokens.float()
        patches, new = x.shape[1] - 1 - len(prompts), prompts.count(layer)
        kept = x[:, :0] if entered is None else entered[:, : len(prompts) - new]
        entered = torch.cat([kept, x[:, x.shape[1] - new :]], dim=1)
        groups = token_groups(layer, prompts, patches)
        at_entry = torch.cat([x[:, : 1 + patches], entered], dim=1)
        yield {name: measure(state, groups, name, at_entry) for name in groups}


def measure(state: LayerState, groups: dict[str, list[int]], name: str, at_entry: Tensor) -> Group:
    """One of the groups of a layer's input; `at_entry` is the input with its prompts as they were when they entered."""
    positions, x = groups[name], F.normalize(state.tokens.float(), dim=-1)
    own, norm = x[:, positions], state.tokens[:, positions].float().norm(dim=-1).mean(dim=1)
    share = state.attention[:, :, 0, positions].sum(dim=-1)
    to_new = to_entry = None
    if new := groups.get(NEW):
        similarity = own @ x[:, new].mT  # (batch, own, new)
        if name == NEW:  # of different prompts
            similarity = similarity[:, ~torch.eye(len(new), dtype=torch.bool)][:, None]
        to_new = similarity.mean(dim=(1, 2)).cpu() if similarity.numel() else None
    if name.startswith("carried"):
        to_entry = (own * F.normalize(at_entry[:, positions], dim=-1)).sum(dim=-1).mean(dim=1).cpu()
    return Group(len(positions), share.cpu(), norm.cpu(), to_new, to_entry)


def summarize(batches: Sequence[Sequence[dict[str, Group]]]) -> list[Content]:
    """Means over all images: an entry for every layer."""
    layers = []
    for layer, parts in enumerate(zip(*batches, strict=True)):
        total = sum(group.tokens for group in parts[0].values())
        entry: Content = {"layer": layer, "tokens": total, "groups": {}}
        for name, first in parts[0].items():
            share = torch.cat([part[name].share for part in parts]).double()  # (images, heads)
            entry["groups"][name] = {
                "tokens": first.tokens,
                "share": share.mean().item(),
                "share_std": share.mean(dim=1).std(correction=0).item(),  # over images
                "share_by_head": share.mean(dim=0).tolist(),
                "times_equal": share.mean().item() * total / first.tokens,
                "norm": mean([part[name].norm for part in parts]),
                "cosine_to_new": mean([part[name].to_new for part in parts]),
                "cosine_to_entry": mean([part[name].to_entry for part in parts]),
            }
        layers.append(entry)
    return layers


def mean(parts: Sequence[Tensor | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known).double().mean().item() if known else None


class Measures:
    """What images show of a model; `add` takes them in batches.

    Args:
        classifier: the model.
        class_names: instead of its own, or None.
    """

    def __init__(self, classifier: PromptedClassifier, class_names: Sequence[str] | None):
        self.classifier, self.names = classifier, list(class_names or classifier.class_names)
        self.model: PromptedCLIP = classifier.model_for(class_names)
        self.schedule: Schedule = list(self.model.prompt_learner.vision())
        self.layers: list[list[dict[str, Group]]] = []
        self.features: dict[str, list[Tensor]] = {"without prompts": [], classifier.method: []}
        self.predicted: list[int] = []
        self.files: list[Path] = []

    def add(self, files: Sequence[Path], images: Tensor) -> None:
        """Images (batch, 3, H, W) by the classifier's transform, and their files."""
        images = images.to(self.classifier.device)
        model, clip = self.model, self.model.clip
        if shows_attention(clip) and self.schedule:
            self.layers.append(list(measure_layers(model, images)))
        prompted = model.image_features(images)
        plain = model.towers.encode_image(model.frozen, images).feature
        for name, features in zip(self.features, (plain, prompted), strict=True):
            self.features[name].append(F.normalize(features.float(), dim=-1).cpu())
        self.predicted += self.classifier.logits(images, self.names).argmax(dim=-1).tolist()
        self.files += files

    def summary(self, k: int) -> Content:
        """The content of inspect.json.

        Args:
            k: words for each text vector.
        """
        description, model = self.classifier.description, self.model
        features = torch.cat([torch.zeros(1, model.clip.visual.output_dim), *self.features["without prompts"]])
        some = features[1:] if self.files else features  # only CoCoOp's text depends on them
        learner = model.prompt_learner
        text = TextPrompts(torch.empty(0))  # of a method without text, such as a linear probe
        if type(learner).text is not PromptLearner.text:
            text = learner.text(some.to(self.classifier.device))
        depth = len(model.clip.transformer.resblocks)
        schedules = {"text": tower_schedule(origins(text.deep, depth, text.n_ctx), [e.remove for e in text.deep])}
        if self.schedule:
            vision_depth = len(model.clip.visual.transformer.resblocks)
            removed = [edit.remove for edit in self.schedule]
            schedules["image"] = tower_schedule(origins(self.schedule, vision_depth), removed)
        return {
            "model": {
                "source": one_line(self.classifier.source),
                "method": description.method,
                "settings": description.settings,
                "backbone": description.backbone,
                "dataset": description.dataset,
                "classes": self.names,
            },
            "images": len(self.files),
            "schedule": {tower: rows for tower, rows in schedules.items() if any(row["origins"] for row in rows)},
            "words": nearest_words(model.clip, text, self.names, k),
            "added": added_vectors(self.schedule),
            "layers": summarize(self.layers),
            "rollout": self.rollout(),
            "features": self.projections(),
        }

    def projections(self) -> Content | None:
        """PCA of the image features, to two dimensions; the marks are the images' folders or, without several, the
        classes that the model predicts."""
        if len(self.files) < 3:
            return None
        from sklearn.decomposition import PCA

        folders = [one_line(file.parent.name) for file in self.files]
        by_folder = len(set(folders)) > 1
        marks = folders if by_folder else [self.names[index] for index in self.predicted]
        content: Content = {"marks": marks, "marks_are": "folders" if by_folder else "predicted classes", "panels": {}}
        for name, parts in self.features.items():
            pca = PCA(2, svd_solver="full")
            with np.errstate(invalid="ignore"):  # all images may be the same
                points = pca.fit_transform(torch.cat(parts).double().numpy())
            explained = np.nan_to_num(pca.explained_variance_ratio_).tolist()
            content["panels"][name] = {"explained": explained, "points": points.tolist()}
        return content

    def rollout(self) -> list[Content]:
        """Of some images, spread over all: the pixels in grey, and what CLS comes from without and with prompts."""
        if not self.files or not shows_attention(self.model.clip):
            return []
        chosen = spread(self.files, ROLLED_OUT)
        images = self.classifier.pixels(chosen)
        schedules = {"without prompts": ()} | ({self.classifier.method: self.schedule} if self.schedule else {})
        found = {
            name: roll_out(self.model.clip, images.to(self.classifier.device), schedule)
            for name, schedule in schedules.items()
        }
        grey = torch.einsum("bchw, c -> bhw", seen(self.classifier, images), torch.tensor(LUMINANCE))
        return [
            {
                "image": one_line(file.name),
                "pixels": grey[number].mul(255).round().div(255).tolist(),
                "shares": {
                    name: {
                        "patches": result.patches[number].tolist(),
                        "prompts": {layer: share[number].item() for layer, share in result.prompts.items()},
                        "cls": result.cls[number].item(),
                    }
                    for name, result in found.items()
                },
            }
            for number, file in enumerate(chosen)
        ]


def seen(classifier: PromptedClassifier, images: Tensor) -> Tensor:
    """Images (batch, 3, H, W) of a classifier's transform as colours from 0 to 1."""
    image = classifier.cfg.INPUT
    if "normalize" not in image.TRANSFORMS:
        return images.clamp(0, 1)
    mean, std = (torch.tensor(list(values))[:, None, None] for values in (image.PIXEL_MEAN, image.PIXEL_STD))
    return (images * std + mean).clamp(0, 1)


def tower_schedule(entered: Sequence[Sequence[int]], removed: Sequence[int]) -> list[Content]:
    """For every layer of a tower what it removes, adds and sees; `entered` is as `origins` returns it."""
    return [
        {
            "layer": layer,
            "removed": removed[layer] if layer < len(removed) else 0,
            "new": prompts.count(layer),
            "carried": len(prompts) - prompts.count(layer),
            "origins": list(prompts),
        }
        for layer, prompts in enumerate(entered)
    ]


def added_vectors(schedule: Schedule) -> Content:
    """The vectors that enter the image tower: the layer of each, its norm, and the cosine similarity of each pair."""
    added = [(layer, edit.add.float()) for layer, edit in enumerate(schedule) if edit.add is not None]
    if not added:
        return {"layers": [], "norms": [], "cosines": []}
    vectors = torch.cat([values for _, values in added])
    unit = F.normalize(vectors, dim=-1)
    return {
        "layers": [layer for layer, values in added for _ in values],
        "norms": vectors.norm(dim=-1).tolist(),
        "cosines": (unit @ unit.mT).tolist(),
    }
