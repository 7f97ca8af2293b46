import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from dassl.engine import TRAINER_REGISTRY

from clip.tokenizer import byte_pairs
from common.errors import UsageError
from common.names import plain
from common.text import read_text

from .base.teacher import which
from .zsclip import SeveralSettings, TextsMethod

END = "</w>"  # of a whole word in the vocabulary of CLIP


@dataclass(frozen=True)
class WaffleCLIPSettings(SeveralSettings):
    """COUNT pairs of random words and random letters (waffle), COUNT sequences of letters
    (waffle_characters), or pairs with descriptors of the class (waffle_and_gpt). A text is PRE
    LABEL_BEFORE name SEPARATOR clause AFTER. WORDS is a file with a word on each line, instead of
    the vocabulary of CLIP.
    """

    MODE: Literal["waffle", "waffle_characters", "waffle_and_gpt"] = "waffle"
    COUNT: int = 15
    LABEL_BEFORE: str = "A photo of a "
    SEPARATOR: str = ", "
    AFTER: str = "."
    PRE: str = ""
    WORDS: str = ""
    ranges = {"COUNT": (1, 1000)}

    def check(self):
        if self.MODE == "waffle_and_gpt" and self.COUNT < 2:
            raise UsageError(
                "COUNT is 1", "give 2 or more: waffle_and_gpt makes two thirds as many pairs"
            )


@cache
def vocabulary() -> tuple[str, ...]:
    """The words of at least four letters from a to z in the vocabulary of CLIP, sorted."""
    words = (word.removesuffix(END) for word in byte_pairs().encoder if word.endswith(END))
    return tuple(
        sorted(word for word in words if len(word) > 3 and word.isascii() and word.isalpha())
    )


def word_sequences(names: Sequence[str], words: Sequence[str], draw: Callable) -> Callable[[], str]:
    """A function that draws words, as many and as long as those of the class names are on
    average.
    """
    parts = [plain(name).split(" ") for name in names]
    count = max(round(np.mean([len(part) for part in parts])), 1)
    # numpy's rounding errors count
    length = round(np.mean([np.mean([len(word) for word in part]) for part in parts]))
    # An array, as each draw would copy a list into one
    shortened = np.array([word[:length] for word in words])
    if not shortened.size:
        raise UsageError(
            "the file TRAINER.WAFFLECLIP.WORDS is empty", "give it a word on each line"
        )
    return lambda: " ".join(draw(shortened) for _ in range(count))


def letter_sequences(
    names: Sequence[str], descriptors: Sequence[str], draw: Callable
) -> Callable[[], str]:
    """A function that draws groups of letters, as long as the class names, from those of the
    descriptors.
    """
    letters = sorted(set("".join(descriptors)) - set(" ,."))
    if not letters:
        raise UsageError(
            "DATASET.SENTENCES has no letters", "give a file with descriptors of the classes"
        )
    groups = round(np.mean([name.count(" ") for name in names])) + 1
    length = math.ceil(np.mean([max(map(len, name.split(" "))) for name in names]))
    length += groups - length % groups
    return lambda: ", ".join(
        "".join(draw(letters) for _ in range(length // groups)) for _ in range(groups)
    )


@TRAINER_REGISTRY.register()
class WaffleCLIP(TextsMethod):
    """Random words and letters instead of descriptors (Roth et al., ICCV 2023)."""

    Settings = WaffleCLIPSettings
    kind = "extra text"
    needs_sentences = True
    seeded = True

    def texts(self):
        """The random texts of one class for all classes; the draws are in the order of the official
        code.
        """
        settings = self.settings
        chance = np.random.RandomState(max(0, self.cfg.SEED))
        names = list(self.sentences)
        kinds = self.kinds(chance)
        pairs = int(2 / 3 * settings.COUNT) if settings.MODE == "waffle_and_gpt" else settings.COUNT
        drawn = {
            name: [self.text(name, kind()) for _ in range(pairs) for kind in kinds]
            for name in names
        }
        kept = str(chance.choice(names))
        texts = {
            name: [text.replace(plain(kept), name) for text in drawn[kept]]
            for name in [*self.class_names, *map(plain, names)]
        }
        if settings.MODE == "waffle_and_gpt":
            self.mix_descriptors(texts, pairs, chance)
        return [texts[name] for name in self.class_names]

    def kinds(self, chance: np.random.RandomState) -> list[Callable[[], str]]:
        """The functions that draw words, and letters."""
        settings = self.settings
        words = read_text(settings.WORDS).splitlines() if settings.WORDS else vocabulary()
        names = list(self.sentences)
        descriptors = [text for texts in self.sentences.values() for text in texts]

        def draw(values: Sequence[str]) -> str:
            return str(chance.choice(values, 1, replace=False)[0])

        kinds = [word_sequences(names, words, draw), letter_sequences(names, descriptors, draw)]
        return kinds[1:] if settings.MODE == "waffle_characters" else kinds

    def mix_descriptors(
        self, texts: dict[str, list[str]], pairs: int, chance: np.random.RandomState
    ) -> None:
        """Add descriptors of each class to its texts, of which so many are drawn."""
        for name, sentences in self.sentences.items():
            own = chance.choice(sentences or [""], 2 * pairs)
            texts[plain(name)] += [self.text(name, str(descriptor)) for descriptor in own]
        for name in map(plain, self.sentences):
            texts[name] = list(map(str, chance.choice(texts[name], 3 * pairs, replace=False)))

    def text(self, name: str, descriptor: str) -> str:
        s = self.settings
        return f"{s.PRE}{s.LABEL_BEFORE}{plain(name)}{s.SEPARATOR}{which(descriptor)}{s.AFTER}"
