"""Dassl's RandAugment: operations of one strength, drawn for each image (Cubuk et al., 2020).

Its operations and their ranges are not those of torchvision's class of this name: Dassl's also
invert, add before they solarise and paint squares, and its enhancements of strength 10 weaken every
image. The draws are Dassl's, too.
"""

import random
from functools import partial

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

STRENGTHS = 30  # the largest
GREY = (125, 123, 114)  # of the painted squares


def signed(value):
    """The value or its negative, with equal chances."""
    return -value if random.random() > 0.5 else value


def autocontrast(image, _):
    return ImageOps.autocontrast(image)


def equalise(image, _):
    return ImageOps.equalize(image)


def invert(image, _):
    return ImageOps.invert(image)


def posterise(image, bits):
    return ImageOps.posterize(image, int(bits))


def rotate(image, degrees):
    return image.rotate(signed(degrees))


def shear(image, value, axis):
    value = signed(value)
    rows = [1, 0, 0, 0, 1, 0]
    rows[1 if axis == 0 else 3] = value
    return image.transform(image.size, Image.Transform.AFFINE, rows)


def translate(image, pixels, axis):
    rows = [1, 0, 0, 0, 1, 0]
    rows[2 if axis == 0 else 5] = signed(pixels)
    return image.transform(image.size, Image.Transform.AFFINE, rows)


def solarise_brighter(image, value):
    """Add to all pixels, then invert those from 128 on."""
    brighter = (np.asarray(image) + float(value)).clip(0, 255).astype(np.uint8)
    return ImageOps.solarize(Image.fromarray(brighter), 128)


def enhance(image, factor, kind):
    return kind(image).enhance(factor)


def paint_square(image, side):
    width, height = image.size
    centre = np.random.uniform(width, 1), np.random.uniform(height, 1)
    left, top = (int(max(0, place - side / 2)) for place in centre)
    image = image.copy()
    ImageDraw.Draw(image).rectangle(
        (left, top, min(width, left + side), min(height, top + side)), GREY
    )
    return image


# Each operation with its value at strength 0 and at the largest, in the order in which Dassl draws
# them.
OPERATIONS = (
    (autocontrast, 0, 1),
    (equalise, 0, 1),
    (invert, 0, 1),
    (rotate, 0, 30),
    (posterise, 4, 8),
    (ImageOps.solarize, 0, 256),
    (solarise_brighter, 0, 110),
    (partial(enhance, kind=ImageEnhance.Color), 0.1, 1.9),
    (partial(enhance, kind=ImageEnhance.Contrast), 0.1, 1.9),
    (partial(enhance, kind=ImageEnhance.Brightness), 0.1, 1.9),
    (partial(enhance, kind=ImageEnhance.Sharpness), 0.1, 1.9),
    (partial(shear, axis=0), 0, 0.3),
    (partial(shear, axis=1), 0, 0.3),
    (paint_square, 0, 40),
    (partial(translate, axis=0), 0, 100),
    (partial(translate, axis=1), 0, 100),
)


class RandAugment:
    """Apply `n` operations of strength `m`, 0 to 30, to an image in RGB."""

    def __init__(self, n=2, m=10):
        self.n = n
        self.m = m

    def __call__(self, image):
        for operation, low, high in random.choices(OPERATIONS, k=self.n):
            image = operation(image, self.m / STRENGTHS * (high - low) + low)
        return image

    def __repr__(self):
        return f"RandAugment(n={self.n}, m={self.m})"
