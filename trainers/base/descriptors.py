"""Descriptors of classes, such as `long tail`: file DATASET.SENTENCES of the methods that make
sentences of them.
"""


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
