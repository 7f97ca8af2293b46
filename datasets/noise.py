"""Wrong labels of training images (NLPrompt, Pan et al., CVPR 2025): DATASET.NOISE_RATE."""

import random
from collections.abc import Sequence


def noisy_labels(
    labels: Sequence[int], classes: int, rate: float, kind: str, seed: int
) -> list[int]:
    """The labels of images, of which a share is wrong.

    Args:
        labels: (images,), from 0.
        classes: how many there are.
        rate: the share of wrong labels; their number is rounded down.
        kind: `sym` for any other class, `asym` for the next one; the last class has the first.
        seed: of Python's generator. The published code draws with the state of its run instead,
            so that the first run with a seed has other wrong labels than later ones.
    """
    drawn = random.Random(seed)
    order = list(range(len(labels)))
    drawn.shuffle(order)
    wrong = set(order[: int(rate * len(labels))])
    noisy = []
    for place, label in enumerate(labels):
        if place not in wrong:
            noisy.append(label)
        elif kind == "asym":
            noisy.append((label + 1) % classes)
        else:
            other = label
            while other == label:
                other = drawn.randint(0, classes - 1)
            noisy.append(other)
    return noisy
