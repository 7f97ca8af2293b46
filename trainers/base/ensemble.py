"""Sentences for a class that several methods average over, with {} for the class name."""

from open_clip import OPENAI_IMAGENET_TEMPLATES

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
