"""Class names that a person gives. Nothing here waits for torch."""

from collections import Counter
from collections.abc import Sequence

from common.errors import UsageError


def check_names(names: Sequence[str]) -> list[str]:
    """Class names without the space around them.

    Raises:
        UsageError: there are none, or one of them is empty or given twice.
    """
    stripped = [" ".join(str(name).split()) for name in ([names] if isinstance(names, str) else names)]
    if not all(stripped) or not stripped:
        raise UsageError("a class name is empty" if stripped else "there are no class names", "give at least one name")
    name, times = Counter(stripped).most_common(1)[0]
    if times > 1:
        raise UsageError(f"the class name {name!r} is given {times} times", "give each name once")
    return stripped


def spoken(names: Sequence[str]) -> tuple[str, ...]:
    """Class names in the form that a text has."""
    return tuple(name.replace("_", " ") for name in names)
