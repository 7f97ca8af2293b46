"""Drawn images of subjects such as `red striped triangle`, `three stars` or `river in forest`.

A `Subject` is the content of an image. A `Style` is its appearance: ranges of sizes, angles, noise
and so on, for random values. The same generator state gives the same image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw, ImageFilter

SIZE = 64  # pixels of a finished image
FINE = 128  # pixels while drawing; averaging them makes edges smooth

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # each command waits for it
DRAWN = yaml.load(Path(__file__).with_name("drawing.yaml").read_text(), Loader)
COLOURS: dict[str, list[int]] = DRAWN["colours"]
HELD_OUT = {"turquoise", "zigzag", "crescent"}  # words that the small CLIP has never read
NUMBERS = ("no", "one", "two", "three", "four", "five")
GROUNDS = ("forest", "grassland", "desert", "snow", "farmland", "sea", "town")
FEATURES = ("river", "road", "lake", "village")


@dataclass(frozen=True)
class Subject:
    """The content of an image. Attributes without a value are not in its name and are drawn at
    random.
    """

    colour: str | None = None
    texture: str | None = None
    shape: str | None = None  # `pattern`: colour and texture fill the image
    count: int | None = None  # of objects, 1 to 5
    # Of a landscape seen from above, which has no attributes but these two
    ground: str | None = None
    feature: str | None = None

    @property
    def words(self) -> str:
        """The class name."""
        if self.ground:
            return f"{self.feature} in {self.ground}" if self.feature else self.ground
        number = NUMBERS[self.count] if self.count else None
        things = plural(self.shape) if self.shape and (self.count or 1) > 1 else self.shape
        return " ".join(word for word in (number, self.colour, self.texture, things) if word)


def plural(shape: str) -> str:
    return shape + ("es" if shape.endswith(("s", "x")) else "s")


@dataclass(frozen=True)
class Style:
    """How subjects are drawn; the defaults are those of pre-training. Pairs are ranges."""

    scale: tuple[float, float] = (0.6, 0.95)  # size of an object, as a part of the image's
    turn: float = 15  # largest rotation, degrees
    shift: float = 0.1  # largest displacement, as a part of the image's size
    periods: tuple[float, float] = (5, 7)  # repeats of a texture across the image
    hue: float = 8  # spread of a colour, of 255
    noise: tuple[float, float] = (0, 8)  # standard deviation of the noise, of 255
    blur: tuple[float, float] = (0, 0.4)  # radius, pixels of the finished image
    contrast: tuple[float, float] = (0.8, 1)  # 1 keeps it, 0 is grey
    haze: float = 0  # strongest cover of white clouds, 0 to 1
    clutter: int = 0  # number of stray marks behind the subject
    rough: float = 10  # variation of the background, of 255
    outline: bool = False  # draw only edges, in the subject's colour on white


# --- textures: (u, v in repeats, generator) -> 1 where the ink is, 0 where the paper shows


def plain(u, v, rng):
    return np.ones_like(u)


def striped(u, v, rng):
    return u % 1 < 0.55


def checked(u, v, rng):
    return (np.floor(1.3 * u) + np.floor(1.3 * v)) % 2 == 0


def dotted(u, v, rng):
    return np.hypot(u % 1 - 0.5, v % 1 - 0.5) > 0.3


def gridded(u, v, rng):
    return (u % 1 > 0.25) & (v % 1 > 0.25)


def wavy(u, v, rng):
    return (u + 0.35 * np.sin(3 * v)) % 1 < 0.55


def zigzag(u, v, rng):
    return (u + np.abs(2 * (0.6 * v % 1) - 1)) % 1 < 0.55


def bricked(u, v, rng):
    return (u % 1 > 0.2) & ((0.5 * v + 0.5 * (np.floor(u) % 2)) % 1 > 0.12)


def speckled(u, v, rng):
    return clouds(rng, 26) > 0.42


def shaded(u, v, rng):
    return (u - u.min()) / (np.ptp(u) * 1.01) % 1


def ringed(u, v, rng):
    return 1.4 * np.hypot(u - u.mean(), v - v.mean()) % 1 < 0.55


INKS = (plain, striped, checked, dotted, gridded, wavy, zigzag, bricked, speckled, shaded, ringed)
TEXTURES: dict[str, Callable] = {ink.__name__: ink for ink in INKS}


def clouds(rng: np.random.Generator, cells: int) -> np.ndarray:
    """(FINE, FINE) of smooth noise from 0 to 1 with about `cells` bumps a side."""
    grid = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
    return np.asarray(grid.resize((FINE, FINE), Image.Resampling.BICUBIC), np.float32) / 255


# --- shapes: corners in a square from -1 to 1, drawn as one polygon


def regular(corners: int, turn: float = 0) -> np.ndarray:
    angles = np.pi * (2 * np.arange(corners) / corners + turn) - np.pi / 2
    return np.stack([np.cos(angles), np.sin(angles)], 1)


ARC = regular(48)
T = np.linspace(0, 2 * np.pi, 60)
SHAPES: dict[str, np.ndarray] = {
    "circle": 0.95 * ARC,
    "oval": ARC * (1, 0.55),
    "square": 1.15 * regular(4, 0.25),
    "triangle": 1.1 * regular(3) + (0, 0.2),
    "diamond": regular(4) * (0.62, 1),
    "pentagon": regular(5),
    "hexagon": regular(6, 1 / 6),
    "star": 1.1 * (regular(10) * np.tile([[1], [0.42]], (5, 1))),
    "cross": np.array(DRAWN["cross"]) / 3,
    "heart": np.stack([np.sin(T) ** 3,
                       -(13 * np.cos(T) - 5 * np.cos(2 * T) - 2 * np.cos(3 * T)
                         - np.cos(4 * T)) / 16], 1),
    "arrow": np.array(DRAWN["arrow"]),
    "crescent": np.concatenate([ARC[24:] , (0.75 * ARC[:23:-1] + (0.5, 0))]),
    "ring": np.concatenate([ARC, ARC[:1], 0.5 * ARC[:1], 0.5 * ARC[::-1]]),
    "drop": np.stack([1.1 * np.sin(T) * np.sin(T / 2) ** 2, -np.cos(T)], 1),
    "semicircle": ARC[:25] * (1.6, 1) - (0.8, 0),
    "bowtie": np.array(DRAWN["bowtie"]),
}  # fmt: skip


# --- lands


def ground(name: str, rng: np.random.Generator) -> np.ndarray:
    """(FINE, FINE, 3), 0 to 255: a cover of land from above."""
    coarse = clouds(rng, 6)[..., None]
    fine = clouds(rng, 40)[..., None]
    if name == "farmland":
        return plots(DRAWN["crops"], 32, 2, rng)
    if name == "town":
        return plots(DRAWN["roofs"], 14, 5, rng)
    mix = coarse
    if name == "forest":
        mix = fine
    elif name == "sea":
        mix = fine * 0.3 + coarse * 0.7
    elif name == "desert":
        mix = 0.5 + 0.5 * np.sin(2 * np.pi * grid(rng, 7, 180)[0][..., None] + 5 * coarse)
    low, high = DRAWN["covers"][name]
    return np.array(low) * (1 - mix) + np.array(high) * mix


def plots(
    colours: Sequence[list[int]], step: int, gap: int, rng: np.random.Generator
) -> np.ndarray:
    """(FINE, FINE, 3): squares of these colours with gaps between them, turned."""
    image = Image.new("RGB", (FINE, FINE), (142, 140, 136))
    pen = ImageDraw.Draw(image)
    for x in range(-int(rng.integers(step)), FINE, step):
        for y in range(-int(rng.integers(step)), FINE, step):
            pen.rectangle((x, y, x + step - gap, y + step - gap), fill=tuple(pick(rng, colours)))
    turned = image.rotate(
        rng.uniform(-40, 40), Image.Resampling.BILINEAR, fillcolor=(142, 140, 136)
    )
    return np.asarray(turned.resize((FINE, FINE), box=(19, 19, FINE - 19, FINE - 19)), np.float32)


def add_feature(name: str, land: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    u, v = grid(rng, 1, 180)
    u = u - u.mean() + rng.uniform(-0.15, 0.15)
    v = v - v.mean()
    if name == "river":
        inside = np.abs(u + 0.12 * np.sin(7 * v + rng.uniform(0, 6))) < rng.uniform(0.05, 0.09)
        colour = (32, 74, 140)
    elif name == "road":
        inside = np.abs(u) < rng.uniform(0.025, 0.04)
        colour = (92, 90, 94)
        inside |= np.abs(v + rng.uniform(-0.5, 0.5)) < 0.025
    elif name == "lake":
        inside = np.hypot(u, 1.3 * v) + 0.25 * (clouds(rng, 6) - 0.5) < rng.uniform(0.2, 0.3)
        colour = (32, 74, 140)
    else:
        image = Image.fromarray(land.clip(0, 255).astype(np.uint8))
        pen = ImageDraw.Draw(image)
        for x, y in rng.normal(0.5, 0.17, (14, 2)) * FINE:
            box = (x, y, x + rng.uniform(6, 11), y + rng.uniform(6, 11))
            pen.rectangle(box, fill=(176, 78, 58), outline=(70, 40, 40))
        return np.asarray(image, np.float32)
    return np.where(inside[..., None], np.array(colour), land)


def grid(rng: np.random.Generator, repeats: float, turn: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates u, v of every pixel, in repeats, turned by up to `turn` degrees, from a random
    start.
    """
    angle = np.radians(rng.uniform(-turn, turn))
    y, x = np.mgrid[:FINE, :FINE] * (repeats / FINE)
    start = rng.uniform(0, 1, 2)
    return x * np.cos(angle) + y * np.sin(angle) + start[0], y * np.cos(angle) - x * np.sin(
        angle
    ) + start[1]


# --- the picture


def draw(subject: Subject, style: Style, rng: np.random.Generator) -> Image.Image:
    """An RGB image of SIZE x SIZE pixels."""
    if subject.ground:
        land = ground(subject.ground, rng)
        canvas = add_feature(subject.feature, land, rng) if subject.feature else land
        canvas = canvas + rng.normal(0, style.hue, 3)
    else:
        canvas = draw_objects(subject, style, rng)
    if style.haze:
        cover = (rng.uniform(0, style.haze) * clouds(rng, 5).clip(0.3, 1))[..., None]
        canvas = canvas * (1 - cover) + 245 * cover
    canvas = 128 + (canvas - 128) * rng.uniform(*style.contrast)
    image = Image.fromarray(canvas.clip(0, 255).astype(np.uint8)).resize(
        (SIZE, SIZE), Image.Resampling.BOX
    )
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(*style.blur)))
    noise = rng.normal(0, rng.uniform(*style.noise), (SIZE, SIZE, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def draw_objects(subject: Subject, style: Style, rng: np.random.Generator) -> np.ndarray:
    """(FINE, FINE, 3): equal objects on a background, or a pattern that fills the image."""
    colour = np.array(COLOURS[subject.colour or pick(rng, COLOURS)]) + rng.normal(0, style.hue, 3)
    # A shade of the colour
    paper = 250 - 0.45 * (250 - colour) if colour.mean() < 150 else 0.45 * colour
    texture = subject.texture or pick(rng, TEXTURES)
    ink = TEXTURES[texture](*grid(rng, rng.uniform(*style.periods), style.turn), rng).astype(
        np.float32
    )
    if subject.shape == "pattern":
        inside = np.ones_like(ink, bool)
    else:
        inside = masks(subject.shape or pick(rng, SHAPES), subject.count or 1, style, rng)
    if style.outline:
        drawn = edges(np.where(inside, ink > 0.5, False)) | edges(inside)
        return np.where(drawn[..., None], colour * 0.9, 250)
    filled = colour * ink[..., None] + paper * (1 - ink[..., None])
    return np.where(inside[..., None], filled, background(colour, style, rng))


def pick(rng: np.random.Generator, names) -> Any:
    names = list(names)
    return names[rng.integers(len(names))]


def masks(shape: str, count: int, style: Style, rng: np.random.Generator) -> np.ndarray:
    """(FINE, FINE), true inside the objects. Each object is in its own cell."""
    cells = {1: (1, 1), 2: (2, 1), 3: (2, 2), 4: (2, 2), 5: (3, 2)}[count]
    size = 1 / max(cells)
    inside = Image.new("1", (FINE, FINE))
    for place in rng.permutation(cells[0] * cells[1])[:count]:
        cell = np.array([place % cells[0], place // cells[0]]) + 0.5
        centre = cell / cells + rng.uniform(-style.shift, style.shift, 2) * size
        corners = SHAPES[shape] * (size * rng.uniform(*style.scale) / 2)
        corners = corners @ rotation(np.radians(rng.uniform(-style.turn, style.turn)))
        points = (corners + centre) * FINE
        ImageDraw.Draw(inside).polygon(list(map(tuple, points)), fill=1)
    return np.asarray(inside)


def rotation(angle: float) -> np.ndarray:
    """The matrix that turns the rows of corners (n, 2)."""
    cosine = np.cos(angle)
    sine = np.sin(angle)
    return np.array([(cosine, sine), (-sine, cosine)])


def edges(mask: np.ndarray) -> np.ndarray:
    """The border of a mask, four pixels wide."""
    image = Image.fromarray(mask.astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.MaxFilter(5))) != np.asarray(
        image.filter(ImageFilter.MinFilter(5))
    )


def background(colour: np.ndarray, style: Style, rng: np.random.Generator) -> np.ndarray:
    """(FINE, FINE, 3): a slightly uneven background in another colour than the object's, and stray
    marks.
    """
    base = rng.uniform(20, 235) + rng.normal(0, 12, 3)
    while np.abs(base - colour).max() < 70:
        base = rng.uniform(20, 235) + rng.normal(0, 12, 3)
    canvas = base + style.rough * 2 * (clouds(rng, 5)[..., None] - 0.5)
    if not style.clutter:  # its values stay fractions
        return canvas
    image = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(style.clutter):
        x, y, dx, dy = rng.uniform(0, FINE, 4) * (1, 1, 0.5, 0.5)
        mark = tuple(map(int, rng.integers(20, 236, 3)))
        pen.line(
            (x, y, x + dx - FINE / 4, y + dy - FINE / 4), fill=mark, width=int(rng.integers(2, 7))
        )
    return np.asarray(image, np.float32)


def unknown_to_small(names: Sequence[str]) -> list[str]:
    """The class names of which the small CLIP has read no word."""
    known = {*COLOURS, *NUMBERS, *GROUNDS, *FEATURES, *TEXTURES, *SHAPES} - HELD_OUT
    return [
        name
        for name in names
        if not any(
            word in known or word.removesuffix("s") in known for word in name.lower().split()
        )
    ]
