"""Names from people and from files: one check of class names and templates, and one way to print
names.
"""

import re
from collections import Counter
from collections.abc import Sequence
from os import PathLike
from typing import Any
from unicodedata import category, combining, east_asian_width, normalize

from .errors import UsageError

MOST = 100_000  # class names of a model: ImageNet-21k has 21,841
LONGEST = 1000  # characters of a class name or a template: a text of 77 tokens has about 300
# Letters that a terminal obeys, that end a line or that turn the direction of writing, and bytes
# that are not UTF-8.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
FORMULA = re.compile("^'*[=+@-]")  # also one with the ' that a CSV file has in front of it


def printable(text: object) -> str:
    """The text in one line that a terminal only shows: control characters become escapes such as
    \\x1b.
    """
    return CONTROL.sub(lambda match: repr(match[0])[1:-1], str(text))


def width(text: str) -> int:
    """The columns of a text in a terminal: a Chinese, Japanese or Korean letter has two, an accent
    none.
    """
    return sum(
        0 if combining(letter) else 1 + (east_asian_width(letter) in "WF") for letter in text
    )


def padded(text: str, columns: int) -> str:
    """The text with spaces behind it, up to a number of columns."""
    return text + " " * (columns - width(text))


def title(cfg: Any) -> str:
    """The name of a configuration's dataset in results, messages and checkpoints."""
    return cfg.DATASET.get("TITLE", "") or cfg.DATASET.NAME


def plain(name: str) -> str:
    """A class name as methods read it."""
    return name.replace("_", " ")


def as_class_name(label: str) -> str:
    """A label as a model has its class names."""
    return " ".join(plain(label).split())


def as_clip_reads(name: str) -> str:
    """A class name as CLIP's tokenizer reads it. CLIP cannot distinguish classes for which this is
    equal.
    """
    return as_class_name(name).lower()


def as_people_see(name: str) -> str:
    """A class name without what nobody sees: how its accents are encoded (NFKC), and letters
    without a width.
    """
    letters = normalize("NFKC", name)
    return as_clip_reads("".join(letter for letter in letters if category(letter) != "Cf"))


def csv_cell(value: object) -> object:
    """A value of a CSV file: a text is printable, and has ' in front where a spreadsheet would run
    it as a formula, or where it looks like a text that already has one.
    """
    return FORMULA.sub(r"'\g<0>", printable(value)) if isinstance(value, str) else value


def of_csv_cell(text: str) -> str:
    """A text of a CSV file, without the ' that `csv_cell` has put in front."""
    return text[1:] if text[:1] == "'" and FORMULA.match(text) else text


def check_names(names: Sequence[str]) -> list[str]:
    """Class names that somebody gave, without the space around them.

    Raises:
        UsageError: as for `check_known_names`, or one of them is given twice.
    """
    stripped = [
        " ".join(str(name).split()) for name in ([names] if isinstance(names, str) else names)
    ]
    check_known_names(stripped)
    name, times = Counter(stripped).most_common(1)[0]
    if times > 1:
        raise UsageError(f"the class name {name!r} is given {times} times", "give each name once")
    return stripped


def check_known_names(names: Sequence[object], where: str | PathLike | None = None) -> None:
    """Check the class names of a dataset or a model. Two may be equal: ImageNet has "missile" and
    "sunglasses" twice.

    Args:
        names: in the order of the labels.
        where: what has them, for the error.

    Raises:
        UsageError: there are none or more than MOST, or one is empty, longer than LONGEST or has
            control characters.
    """
    if not 0 < len(names) <= MOST:
        fault = f"there are {len(names):,} class names" if names else "there are no class names"
        raise UsageError(fault, f"give 1 to {MOST:,}", where)
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise UsageError("a class name is empty or not a text", "give each class a name", where)
        if len(name) > LONGEST:
            raise UsageError(
                f"the class name {name[:40]!r}... has {len(name):,} characters", "shorten it", where
            )
        if CONTROL.search(name):
            raise UsageError(
                f"the class name {name!r} has control characters", "rename the class", where
            )


def check_template(template: str, where: str | PathLike | None = None) -> None:
    """Check a sentence with {} for the class name. Raises UsageError if it has no {} or more than
    four, is longer than LONGEST or has control characters."""
    if not 0 < template.count("{}") < 5 or len(template) > LONGEST or CONTROL.search(template):
        fault = (
            f"the template {template[:60]!r} does not have {{}} in the place of the class name, "
            "or is too long"
        )
        raise UsageError(fault, "write one such as 'a photo of a {}.'", where)


def with_spaces(names: Sequence[str]) -> tuple[str, ...]:
    """Class names with spaces instead of underscores."""
    return tuple(map(plain, names))
