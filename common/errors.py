"""The one kind of error for everything that the person running a command can fix."""

from collections.abc import Iterable
from difflib import get_close_matches
from os import PathLike


class UsageError(ValueError):
    """Raised for something that the person running a command can fix.

    Its text is one line: `where: what: remedy`. Commands print it without a traceback and exit with status 2
    (`--debug` shows the traceback).

    Args:
        what: the fault.
        remedy: the next step.
        where: the file, folder or setting that is concerned; printed unless `what` names it already.
    """

    def __init__(self, what: str, remedy: str = "", where: str | PathLike | None = None):
        super().__init__(what, remedy, where)  # all of them, so that the error survives pickling
        self.what, self.remedy, self.where = what, remedy, where

    def __str__(self) -> str:
        where = "" if self.where is None or str(self.where) in self.what else str(self.where)
        return ": ".join(part for part in (where, self.what, self.remedy) if part)


def one_line(text: object) -> str:
    """At most 200 printable characters of a text, or of an error; the name of its class if it has no text."""
    line = " ".join(str(text).split()) or type(text).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in line[:200])


def closest(name: object, known: Iterable[object]) -> str:
    """The one of the known names that `name` is most likely a misspelling of, or an empty string."""
    by_lower = {str(candidate).lower(): str(candidate) for candidate in known}
    near = get_close_matches(str(name).lower(), by_lower, n=1)
    return by_lower[near[0]] if near else ""


def choose(
    name: object, known: Iterable[object], kind: str, where: str | PathLike | None = None, otherwise: str = ""
) -> None:
    """Check that `name` is one of the known ones.

    Raises:
        UsageError: it is not. The message names the closest one, or all of them, and ends with `otherwise`.
    """
    names = [str(candidate) for candidate in known]
    if str(name) not in names:
        near = closest(name, names)
        remedy = f"did you mean {near}?" if near else f"known are {', '.join(names) or 'none'}"
        raise UsageError(f"there is no {kind} {name!r}", f"{remedy}; {otherwise}" if otherwise else remedy, where)


def choose_dataset(name: str, known: Iterable[str]) -> None:
    """Check that `name` is one of the known datasets; as for `choose`."""
    choose(name, known, "dataset", otherwise="for your own images see docs/own_classes.md")
