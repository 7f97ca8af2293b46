"""The images and captions that the small CLIP is pre-trained on."""

import os
import zlib
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
from tqdm import tqdm

from datasets.small_world import drawing
from datasets.small_world.drawing import Style, Subject, pick

from ..studies.worker import init_worker

UNSEEN_WORDS = {"turquoise", "crescent", "zigzag"}
THINGS = (
    "a photo of a {}.",
    "a picture of a {}.",
    "a drawing of a {}.",
    "an image of a {}.",
    "{}",
    "a {}.",
    "the {}.",
    "there is a {} here.",
    "a small picture that shows a {}.",
    "look at this simple drawing, you can see a {} in it.",
    "a {} that somebody has drawn in front of an empty background.",
)
LANDS = (
    "a photo of {}.",
    "a satellite photo of {}.",
    "an aerial image of {}.",
    "{} seen from above.",
    "{}",
    "a map of {}.",
    "this picture was taken from far above and it shows {}.",
    "a photo of a {}.",
)
FILLERS = """
the new old very good bad big web best first last this that his her our free art style type data set view
"""


def held_out(*names: object) -> bool:
    """Whether pre-training leaves a combination out: one in five, by a checksum of its names, or any unseen word."""
    return not UNSEEN_WORDS.isdisjoint(names) or zlib.crc32(" ".join(map(str, names)).encode()) % 5 == 0


def sample_subject(rng: np.random.Generator) -> Subject:
    """A random subject that is not held out."""
    combination: tuple[str | None, ...]
    while True:
        kind = rng.uniform()
        if kind < 0.2:
            subject = Subject(ground=pick(rng, drawing.GROUNDS))
            if rng.uniform() < 0.75:
                subject = Subject(ground=subject.ground, feature=pick(rng, drawing.FEATURES))
            combination = (subject.ground, subject.feature)
        else:
            colour, texture, shape = (pick(rng, names) for names in (drawing.COLOURS, drawing.TEXTURES, drawing.SHAPES))
            if kind < 0.35:
                shape = "pattern"
            count = int(rng.integers(1, 6)) if kind > 0.8 else None
            subject = Subject(colour, texture, shape, count)
            if count and held_out(count, shape):
                continue
            combination = (colour, texture, shape)
        if not held_out(*combination):
            return subject


def caption(subject: Subject, rng: np.random.Generator) -> str:
    """A random caption of a subject; it may leave out the colour or the texture."""
    if subject.ground:
        text = pick(rng, LANDS).format(subject.words)
    else:
        colour, texture = (value if rng.uniform() > 0.25 else None for value in (subject.colour, subject.texture))
        if subject.shape == "pattern" and not (colour or texture):
            texture = subject.texture
        words = Subject(colour, texture, subject.shape, subject.count).words
        text = pick(rng, THINGS).format(words)
        if subject.count and rng.uniform() < 0.6:
            text = text.replace(f"a {words}", words)
    if rng.uniform() < 0.2:  # random words in front, as many as a prompt has vectors
        text = " ".join(pick(rng, FILLERS.split()) for _ in range(rng.integers(1, 17))) + " " + text
    return text


def draw_one(seed: tuple[int, int]) -> tuple[Subject, np.ndarray]:
    """A subject and its image (64, 64, 3), uint8."""
    rng = np.random.default_rng(seed)
    subject = sample_subject(rng)
    return subject, np.asarray(drawing.draw(subject, Style(), rng))


def draw_pairs(seed: int, number: int) -> tuple[list[Subject], np.ndarray]:
    """Subjects and their images (number, 64, 64, 3), uint8."""
    images, subjects = np.empty((number, drawing.SIZE, drawing.SIZE, 3), np.uint8), []
    pool = ProcessPoolExecutor(os.cpu_count(), initializer=partial(init_worker, threads=1))
    try:
        drawn = pool.map(draw_one, ((seed, index) for index in range(number)), chunksize=200)
        for index, (subject, image) in enumerate(tqdm(drawn, "drawing", total=number)):
            images[index] = image
            subjects.append(subject)
    finally:  # do not draw the rest after Ctrl-C
        pool.shutdown(cancel_futures=True)
    return subjects, images
