"""Sentences for a class that several methods average over, with {} for the class name, and
sentences of descriptors, such as `long tail`.
"""

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
