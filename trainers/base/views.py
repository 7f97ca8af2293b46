"""Views of an image: its centre, and random crops and flips of it, mixed by AugMix if asked
(Hendrycks et al., 2020).

They depend on the pixels of the image and on a seed, and on nothing else: not on other images,
workers or threads.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

AREA = 0.08, 1.0  # of a crop, as a share of the image
RATIO = 3 / 4, 4 / 3  # of the sides of a crop
LOG_RATIO = torch.log(torch.tensor(RATIO)).tolist()
TRIES = 10
# Of AugMix's operations
CHAINS = 3
LONGEST_CHAIN = 3

Picture = Image.Image
Draw = np.random.RandomState


@dataclass(frozen=True)
class ViewsTransform:
    """A transform from a PIL image in RGB to its views, (count, 3, H, W)."""

    # The transform of a test, which makes view 0: steps on PIL images, `ToTensor`, further steps
    centre: T.Compose
    size: tuple[int, int]  # (H, W)
    count: int = 64  # number of views
    augmix: bool = False  # whether AugMix changes all views but the first
    seed: int = 0  # chooses the random views
    least_area: float = AREA[0]  # of a crop

    def __call__(self, image: Picture) -> Tensor:
        digest = hashlib.sha256(f"{self.seed} {image.size} ".encode() + image.tobytes()).digest()
        chance = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        draw = Draw(int.from_bytes(digest[7:11], "big"))
        others = (self.random_view(image, chance, draw) for _ in range(self.count - 1))
        return torch.stack([self.centre(image), *others])

    def random_view(self, image: Picture, chance: torch.Generator, draw: Draw) -> Tensor:
        """A random crop, flipped with probability 1/2, by `chance`; `draw` is for AugMix. (3, H,
        W).
        """
        crop = F.resized_crop(
            image,
            *crop_box(image, chance, self.least_area),
            list(self.size),
            InterpolationMode.BILINEAR,
        )
        if torch.rand(1, generator=chance) < 0.5:
            crop = F.hflip(crop)
        return mixed(crop, self.to_tensor, draw) if self.augmix else self.to_tensor(crop)

    @property
    def to_tensor(self) -> T.Compose:
        return from_tensor_on(self.centre)


def from_tensor_on(transform: T.Compose) -> T.Compose:
    """The steps of the transform of a test from `ToTensor` on."""
    steps = transform.transforms
    first = next(n for n, step in enumerate(steps) if isinstance(step, T.ToTensor))
    return T.Compose(steps[first:])


def crop_box(
    image: Picture, chance: torch.Generator, least_area: float = AREA[0]
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random crop: torchvision's RandomResizedCrop with a given
    generator.
    """
    width, height = image.size
    for _ in range(TRIES):
        area = torch.empty(1).uniform_(least_area, AREA[1], generator=chance).item()
        area *= width * height
        ratio = torch.exp(torch.empty(1).uniform_(*LOG_RATIO, generator=chance)).item()
        w = round(math.sqrt(area * ratio))
        h = round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = (
                int(torch.randint(0, n + 1, (1,), generator=chance))
                for n in (height - h, width - w)
            )
            return top, left, h, w
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def mixed(image: Picture, to_tensor: Callable[[Picture], Tensor], draw: Draw) -> Tensor:
    """AugMix of severity 1: a mean of an image and of three chains of operations on it, (3, H,
    W).
    """
    weights = draw.dirichlet([1.0] * CHAINS).tolist()
    keep = draw.beta(1.0, 1.0)
    mix = torch.zeros(())
    for weight in weights:
        changed = image.copy()
        for _ in range(draw.randint(1, LONGEST_CHAIN + 1)):
            changed = OPERATIONS[draw.choice(len(OPERATIONS))](changed, draw)
        mix = mix + weight * to_tensor(changed)
    return keep * to_tensor(image) + (1 - keep) * mix


def level(draw: Draw) -> float:
    """The strength of an operation; a strength of 1 is the most."""
    return draw.uniform(0.1, 1)


def signed(value: float, draw: Draw) -> float:
    return -value if draw.uniform() > 0.5 else value


def affine(image: Picture, *coefficients: float) -> Picture:
    """(x, y) of the result is from (a x + b y + c, d x + e y + f); black outside."""
    return image.transform(
        image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )


def shift(draw: Draw, side: int) -> float:
    """Pixels of a translation; up to 7 of 224."""
    return signed(int(level(draw) * side / 30), draw)


# The operations, by their names there


def autocontrast(image: Picture, draw: Draw) -> Picture:
    return ImageOps.autocontrast(image)


def equalize(image: Picture, draw: Draw) -> Picture:
    return ImageOps.equalize(image)


def posterize(image: Picture, draw: Draw) -> Picture:
    return ImageOps.posterize(image, 4 - int(0.4 * level(draw)))


def rotate(image: Picture, draw: Draw) -> Picture:
    return image.rotate(signed(int(3 * level(draw)), draw), Image.Resampling.BILINEAR)


def solarize(image: Picture, draw: Draw) -> Picture:
    return ImageOps.solarize(image, 256 - int(25.6 * level(draw)))


def shear_x(image: Picture, draw: Draw) -> Picture:
    return affine(image, 1, signed(0.03 * level(draw), draw), 0, 0, 1, 0)


def shear_y(image: Picture, draw: Draw) -> Picture:
    return affine(image, 1, 0, 0, signed(0.03 * level(draw), draw), 1, 0)


def translate_x(image: Picture, draw: Draw) -> Picture:
    return affine(image, 1, 0, shift(draw, image.width), 0, 1, 0)


def translate_y(image: Picture, draw: Draw) -> Picture:
    return affine(image, 1, 0, 0, 0, 1, shift(draw, image.height))


OPERATIONS = (
    autocontrast,
    equalize,
    posterize,
    rotate,
    solarize,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
)
