"""Everything that `python tools/inspect.py` finds out about a model, as plain numbers: the content
of inspect.json.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from clip import CLIP, TextPrompts, image_blocks, text_blocks, tokenizer_of, word_table
from clip.anatomy import hugging_face
from common.errors import one_line
from trainers.base.prompted import PromptedCLIP

from ..classifier import PromptedClassifier
from .tower import compared_roll_outs, entry_layers, layers_of, shows_attention

# Ages of tokens; a prompt that was added n layers before has the age n
CLS = -2
PATCH = -1
NEW = 0
GROUPS = {CLS: "CLS", PATCH: "patches", NEW: "new"}  # others are `carried n`


def measure_tokens(model: PromptedCLIP, images: Tensor) -> pd.DataFrame:
    """A row for each token in each layer's input: layer, age, and two sums over the images.

    `share` is the part of CLS's attention, mean over the heads; `cosine` the cosine similarity of a
    prompt with itself at the layer that it entered before.

    Args:
        model: one whose image tower `shows_attention`.
        images: (batch, 3, H, W).
    """
    rows = []
    at_entry = torch.empty(0)
    for layer, inputs in enumerate(layers_of(model.clip, images, model.prompt_learner.vision())):
        tokens, attention, entered = inputs
        prompts = tokens[:, tokens.shape[1] - len(entered) :].float()  # (batch, prompts, width)
        if layer:
            carried = len(entered) - entered.count(layer)
            at_entry = torch.cat([at_entry[:, :carried], prompts[:, carried:]], dim=1)
        else:
            at_entry = prompts
        cosines = F.cosine_similarity(prompts, at_entry, dim=-1)
        rows.append(layer_rows(layer, entered, attention, cosines))
    return pd.concat(rows, ignore_index=True)


def layer_rows(layer: int, entered: list[int], attention: Tensor, cosines: Tensor) -> pd.DataFrame:
    """The rows of a layer's tokens: CLS, patches, and prompts with their `cosines` (batch,
    prompts).
    """
    shares = attention[:, :, 0].mean(dim=1).sum(dim=0)
    others = len(shares) - len(entered)
    ages = [CLS, *[PATCH] * (others - 1), *(layer - origin for origin in entered)]
    frame = pd.DataFrame({"layer": layer, "age": ages})
    frame["share"] = shares.double().cpu()
    frame["cosine"] = F.pad(cosines.sum(dim=0), (others, 0)).double().cpu()
    return frame


def attention_by_age(batches: Sequence[pd.DataFrame], images: int) -> list[dict[str, Any]]:
    """An entry for every layer, with means over all images, from what `measure_tokens` found in
    each batch.
    """
    means = batches[0].assign(
        **{key: sum(batch[key] for batch in batches) / images for key in ("share", "cosine")}
    )
    layers = []
    for layer, tokens in means.groupby("layer"):
        groups = {}
        for age, own in tokens.groupby("age"):
            group = {
                "tokens": len(own),
                "share": own["share"].sum(),
                "times_equal": own["share"].mean() * len(tokens),
            }
            if age > NEW:
                group["cosine_to_entry"] = own["cosine"].mean()
            groups[GROUPS.get(age, f"carried {age}")] = group
        layers.append({"layer": layer, "tokens": len(tokens), "groups": groups})
    return layers


class Measures:
    """What images show of a model, perhaps with other class names; `add` takes the images in
    batches.
    """

    def __init__(self, classifier: PromptedClassifier, class_names: Sequence[str] | None):
        self.classifier = classifier
        self.names = list(class_names or classifier.class_names)
        self.model: PromptedCLIP = classifier.model_for(class_names)
        self.tokens: list[pd.DataFrame] = []
        self.features: list[Tensor] = []

    def add(self, images: Tensor) -> None:
        """Images (batch, 3, H, W) by the classifier's transform."""
        images = images.to(self.classifier.device)
        if shows_attention(self.model.clip) and self.model.prompt_learner.vision():
            self.tokens.append(measure_tokens(self.model, images))
        self.features.append(self.model.image_features(images))

    def summary(self, k: int, files: Sequence[Path], pixels: Tensor) -> dict[str, Any]:
        """The content of inspect.json.

        Args:
            k: words for each text vector.
            files, pixels: the images of the roll-out, and the same as `add` takes them.
        """
        images = sum(map(len, self.features))
        text = self.text()
        rolled = compared_roll_outs(self.classifier, pixels)
        rollout = []
        for place, file in enumerate(files if rolled else ()):
            shares = {name: of_images[place] for name, of_images in rolled.items()}
            rollout.append({"image": one_line(file.name), "shares": shares})
        return {
            "model": self.facts(),
            "images": images,
            "schedule": self.schedule(text),
            "words": nearest_words(self.model.clip, text, self.names, k),
            "layers": attention_by_age(self.tokens, images) if self.tokens else [],
            "rollout": rollout,
        }

    def facts(self) -> dict[str, Any]:
        """The facts of the model, and the class names."""
        description = self.classifier.description
        return {
            "source": one_line(self.classifier.source),
            "method": description.method,
            "settings": description.settings,
            "backbone": description.backbone,
            "dataset": description.dataset,
            "classes": self.names,
        }

    def text(self) -> TextPrompts:
        """The input of the text tower; CoCoOp's depends on the images. Empty for a method without
        text, such as a linear probe.
        """
        width = self.model.clip.visual.output_dim
        nothing = torch.zeros(1, width, device=self.classifier.device)
        try:
            return self.model.prompt_learner.text(torch.cat(self.features or [nothing]))
        except NotImplementedError:
            return TextPrompts(torch.empty(0))

    def schedule(self, text: TextPrompts) -> dict[str, list[list[int]]]:
        """The layers at which the prompts in each layer's input have entered, by tower."""
        clip = self.model.clip
        vision = self.model.prompt_learner.vision()
        layers = 1 if hugging_face(clip) is not None else len(text_blocks(clip))
        schedule = {"text": entry_layers(text.deep, layers, text.n_ctx)}
        if vision:
            schedule["image"] = entry_layers(vision, len(image_blocks(clip)))
        return {tower: layers for tower, layers in schedule.items() if any(layers)}


def learned_vectors(
    prompts: TextPrompts, class_names: Sequence[str]
) -> Iterator[tuple[int, str | None, Tensor]]:
    """All vectors that are not words: the layer they enter before, their class (None: all), and (n,
    width).

    Of vectors that differ by image, the mean.
    """
    ctx = prompts.ctx
    if ctx is not None and ctx.dim() == 4:  # (images, 1, n, width)
        ctx = ctx.mean(dim=(0, 1))
    for layer, values in [
        (0, ctx),
        *((layer, edit.add) for layer, edit in enumerate(prompts.deep)),
    ]:
        if values is not None and values.dim() == 3:
            for name, own in zip(class_names, values, strict=True):
                yield layer, name, own
        elif values is not None:
            yield layer, None, values


def nearest_words(
    clip: CLIP, prompts: TextPrompts, class_names: Sequence[str], k: int
) -> list[dict[str, Any]]:
    """For every learned vector its place, its norm, and the k nearest token embeddings by Euclidean
    distance.

    CoOp's `interpret_prompt.py` lists the same. Tokens are as `Tokenizer.word` writes them.
    """
    rows = []
    for layer, class_name, vectors in learned_vectors(prompts, class_names):
        for number, vector in enumerate(vectors.double()):
            row: dict[str, Any] = {"layer": layer, "class": class_name, "vector": number}
            row["norm"] = vector.norm().item()
            row["nearest"] = words_near(clip, vector, k)
            rows.append(row)
    return rows


def words_near(clip: CLIP, vector: Tensor, k: int) -> list[list[Any]]:
    """The k tokens whose embeddings are nearest to a vector (width,), with their distances."""
    word = tokenizer_of(clip).word
    distances = torch.cdist(vector[None], word_table(clip).weight.double())[0]
    found = distances.topk(min(k, len(distances)), largest=False)
    pairs = zip(found.indices.tolist(), found.values.tolist(), strict=True)
    return [[word(token), distance] for token, distance in pairs]
