"""NegLabel (Jiang et al., ICLR 2024): images that look more like other words than like the classes
are unknown.

Words are nouns and adjectives, one on each line of the files of TEST.OOD_WORDS; without files,
those of the synthetic datasets. The words least like the classes are kept; a softmax has both.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import UsageError
from common.text import lines_of, read_text
from datasets.small_world import vocabulary
from trainers.base.prompted import PromptedCLIP, normalize
from trainers.base.teacher import encode_texts

# The published sentences
NOUN = "the nice {}"
ADJECTIVE = "This is a {} photo"
FRACTION = 0.15
PERCENTILE = 0.95
GROUPS = 100
SCALE = 100.0  # of cosines, as published
FEWEST = 10  # kept words


def read_words(files: Sequence[str]) -> tuple[list[str], list[str]]:
    """Nouns and adjectives, each once, from one or two files; without files those of the synthetic
    datasets.

    Raises UsageError if a file is missing or not text, or there are more files.
    """
    if not files:
        return vocabulary()
    if len(files) > 2:
        remedy = "give one with nouns, and one with adjectives or none"
        raise UsageError(f"TEST.OOD_WORDS has {len(files)} files", remedy)
    lists = [[*dict.fromkeys(lines_of(read_text(Path(file).expanduser())))] for file in files]
    nouns, adjectives = lists if len(lists) == 2 else (lists[0], [])
    return nouns, [word for word in adjectives if word not in set(nouns)]


def select(
    classes: Tensor,
    nouns: Tensor,
    adjectives: Tensor,
    fraction: float = FRACTION,
    percentile: float = PERCENTILE,
) -> tuple[list[int], list[int]]:
    """The numbers of the nouns and of the adjectives that are kept, the least like the classes
    first.

    Args:
        classes, nouns, adjectives: text features (n, joint) of unit length.
        fraction: of the words of each list to keep.
        percentile: the quantile over the classes (by linear interpolation) of a word's cosines,
            which counts.
    """

    def least_like(words: Tensor) -> list[int]:
        likeness = np.quantile(
            (words.double() @ classes.double().T).cpu().numpy(), percentile, axis=1
        )
        return np.argsort(likeness, kind="stable")[: int(fraction * len(words))].tolist()

    return least_like(nouns), least_like(adjectives)


def score(
    logits: Tensor, of_words: Tensor, order: Sequence[int], groups: int = GROUPS, t: float = 1.0
) -> Tensor:
    """(images,), in double precision: the probability of the classes beside a group of words, the
    mean over groups.

    Args:
        logits: (images, classes).
        of_words: (images, words), on the same scale.
        order: of the words; consecutive ones of equal number are a group. The last ones of
            `of_words` are left out, so that `groups` divides the number.
        t: the temperature.
    """
    grouped = of_words.double()[:, list(order)].unflatten(1, (groups, -1)) / t
    of_classes = (logits.double() / t).logsumexp(dim=1)
    return (of_classes[:, None] - grouped.logsumexp(dim=2)).sigmoid().mean(dim=1)


class NegativeWords:
    """The words that are compared beside the classes of a run, by text features of the frozen
    CLIP of its model.

    Raises UsageError as `read_words` does, or if there are too few words.
    """

    def __init__(
        self, model: PromptedCLIP, class_names: Sequence[str], files: Sequence[str], seed: int
    ):
        self.model = model
        nouns, adjectives = read_words(files)
        self.features = self.kept(class_names, nouns, adjectives)
        kept = len(self.features)
        if kept < FEWEST:
            words = len(nouns) + len(adjectives)
            fault = f"NegLabel would keep {kept} of {words} words, and needs {FEWEST}"
            remedy = f"give more in TEST.OOD_WORDS: {FRACTION:.0%} of the words are kept"
            raise UsageError(fault, remedy)
        self.groups = min(GROUPS, kept)
        count = kept - kept % self.groups
        self.order = np.random.default_rng(max(0, seed)).permutation(count).tolist()

    def kept(
        self, class_names: Sequence[str], nouns: Sequence[str], adjectives: Sequence[str]
    ) -> Tensor:
        """The features (words, joint) of the words that `select` keeps."""
        of_classes = self.encode(class_names, NOUN)
        of_nouns = self.encode(nouns, NOUN) if nouns else of_classes[:0]
        of_adjectives = self.encode(adjectives, ADJECTIVE) if adjectives else of_classes[:0]
        kept_nouns, kept_adjectives = select(of_classes, of_nouns, of_adjectives)
        return torch.cat([of_nouns[kept_nouns], of_adjectives[kept_adjectives]])

    @torch.no_grad()
    def encode(self, words: Sequence[str], sentence: str) -> Tensor:
        """The features (words, joint) of words in a sentence, of unit length."""
        sentences = [sentence.replace("{}", word) for word in words]
        device = self.model.clip.logit_scale.device
        return normalize(encode_texts(self.model.frozen, sentences, device))

    def score(self, logits: Tensor, image_features: Any) -> Tensor:
        """(batch,), from the logits (batch, classes) and the features (batch, joint) of images."""
        of_words = SCALE * normalize(image_features) @ self.features.T
        return score(SCALE / self.model.scale * logits, of_words, self.order, self.groups)
