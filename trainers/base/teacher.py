"""The text features of the frozen CLIP over any templates, computed once and kept on disk; and CLIP
as a teacher.
"""

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from open_clip import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor
from tqdm import tqdm

from clip import CLIP, TextPrompts, encode_text, tokenizer_of
from clip.digest import Key
from common.cache import DiskCache

from .features import get_tensor, put_tensor
from .method import Method
from .prompted import Output, PromptedCLIP, normalize

# Of Tip-Adapter and of the methods that follow it, for ImageNet and other sets of many kinds of
# classes.
SEVEN = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
EIGHTY = tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


def which(descriptor: str) -> str:
    """The relative clause of a descriptor: `which has ...`, `which is ...` or, if it has a verb,
    `which ...`.

    As in the code of Menon and Vondrick (2023), every descriptor with a first `a` gets `is`.
    """
    verb = ""
    if descriptor.startswith(("a", "used")):
        verb = "is "
    elif not descriptor.startswith(("has", "often", "typically", "may", "can")):
        verb = "has "
    return f"which {verb}{descriptor}"


TEMPLATES = EIGHTY[:60]  # of PromptSRC
ROWS = 256  # texts at a time
LIMIT = 5e8  # bytes of all files of text features: a thousand classes have 2 MB
# Backbone -> (its state, the checksum of its text tower, its tensors in this state)
_keys = WeakKeyDictionary[CLIP, tuple[Any, Key, list[Tensor]]]()


def cache_folder() -> Path:
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        / "modular-prompt-learning"
    )


class Teacher:
    """The features of the frozen CLIP that a method holds its own near to; a class's text feature
    is the mean of its sentences' (`texts`, as `Method.class_sentences` returns them)."""

    def __init__(self, model: PromptedCLIP, texts: Sequence[Sequence[str]]):
        self.model = model
        self.texts = texts

    @cached_property
    def text_features(self) -> Tensor:
        """(C, joint), fp32, normalised (PromptSRC, Sec. 3.4); computed when it is first asked
        for.
        """
        return normalize(mean_text_features(self.model.frozen, self.texts))

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor:
        """(batch, 3, H, W) -> (batch, joint), fp32, normalised."""
        return normalize(self.model.towers.encode_image(self.model.frozen, images).feature)


def cosine_distance(ours: Tensor, teachers: Tensor) -> Tensor:
    """One minus the mean cosine of features (n, joint) of unit length."""
    return 1 - (ours * teachers).sum(dim=-1).mean()


class TaughtMethod(Method):
    """A method that holds its features near those of the frozen CLIP, which reads one sentence for
    each class.
    """

    reads_sentences = True
    # For datasets whose zero-shot template is another sentence
    teacher_templates: ClassVar[Mapping[str, str]] = {}

    @cached_property
    def teacher(self) -> Teacher:
        return Teacher(self.model, self.class_sentences(self.template(self.teacher_templates)))

    def distillation_loss(
        self, output: Output, labels: Tensor, weight: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A `loss`: cross-entropy, plus `weight` times the `cosine_distance` of text features from
        the teacher's.
        """
        ce = F.cross_entropy(output.logits, labels)
        distance = cosine_distance(output.text, self.teacher.text_features)
        return ce + weight * distance, {"loss_ce": ce, "loss_score": distance}


@torch.no_grad()
def mean_text_features(clip: CLIP, texts: Sequence[Sequence[str]], unit: bool = False) -> Tensor:
    """The mean over its sentences of a class's text feature; a sentence that is there twice counts
    twice.

    Kept in `cache_folder()` under a key made of the text tower's weights and the sentences.

    Args:
        clip: the frozen backbone; the features are on its device.
        texts: the sentences of each of C classes, at least one. Longer ones than the tower reads
            are cut.
        unit: whether each feature is normalised before the mean.

    Returns:
        (C, joint), fp32, not normalised.
    """
    flat = list(chain(*texts))
    counts = list(map(len, texts))
    cache = DiskCache(cache_folder(), "teacher", "teacher's text features", LIMIT)
    key = fingerprint(clip, [*flat, *map(str, counts), "mean of unit" if unit else "mean"])
    device = clip.logit_scale.device
    shape = len(texts), clip.visual.output_dim
    if (cached := get_tensor(cache, key, shape, torch.float32)) is not None:
        return cached.to(device)
    # In fp32 even in an amp run: other runs will read it
    with torch.autocast(device.type, enabled=False):
        features = encode_each_once(clip, flat, device)
    features = normalize(features) if unit else features
    features = torch.stack([part.mean(dim=0) for part in features.split(counts)])
    put_tensor(cache, key, features)
    return features


def unit_texts(method: Method, *templates: str) -> Tensor:
    """(classes, joint), fp32, of unit length: the mean of the unit features of a class's sentences
    (`Method.class_sentences`).
    """
    sentences = method.class_sentences(*templates)
    return normalize(mean_text_features(method.model.frozen, sentences, unit=True))


def encode_each_once(clip: CLIP, texts: Sequence[str], device: torch.device) -> Tensor:
    """`encode_texts` for texts of which some are equal."""
    different = sorted(set(texts))  # texts with the same beginning come together
    features = encode_texts(clip, different, device)
    rows = {text: row for row, text in enumerate(different)}
    return features[[rows[text] for text in texts]]


def encode_texts(clip: CLIP, texts: list[str], device: torch.device) -> Tensor:
    """(texts, joint), fp32, not normalised."""
    features = []
    full = 0
    tokenizer = tokenizer_of(clip)
    for start in tqdm(range(0, len(texts), ROWS), desc="Text features", unit="batch", disable=None):
        ids = tokenizer(texts[start : start + ROWS], truncate=True).to(device)
        full += int((ids[:, -1] != tokenizer.pad).sum())
        features.append(encode_text(clip, TextPrompts(ids)).float())
    if full:
        fault = (
            f"{full} of {len(texts)} texts fill the {clip.context_length} positions of the text "
            "tower"
        )
        print(f"{fault}: it reads no more of them")
    return torch.cat(features)


def fingerprint(clip: CLIP, texts: Sequence[str]) -> str:
    """A checksum of the text tower and of texts."""
    key = text_tower_key(clip).copy()
    for text in texts:
        key.add(text.encode() + b"\0")
    return str(key)


def text_tower_key(clip: CLIP) -> Key:
    """A checksum of the text tower, computed again after the tower has changed."""
    heads = [getattr(module, "num_heads", 0) for module in clip.transformer.modules()]
    key = Key(
        "text features",
        1,
        transformer=clip.transformer,  # whose text shows the activation
        norm=getattr(clip, "ln_final", None),
        heads=heads,
        pool=clip.text_pool_type,
        tokeniser=tokenizer_of(clip).name,
    )
    tensors = clip.state_dict(keep_vars=True).items()
    own = {name: tensor for name, tensor in tensors if not name.startswith("visual.")}
    if any(tensor.is_inference() for tensor in own.values()):
        key.add_tensors(own)  # whose changes are not counted
        return key
    changes = [(tensor.data_ptr(), tensor._version) for tensor in own.values()]
    state = str(key), changes
    if clip not in _keys or _keys[clip][0] != state:
        key.add_tensors(own)
        # The tensors are kept, so that no other tensor gets the place of one
        _keys[clip] = state, key, [tensor.detach() for tensor in own.values()]
    return _keys[clip][1]
