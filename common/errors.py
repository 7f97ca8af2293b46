"""The one kind of error for everything that the person running a command can fix."""

import re
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher, get_close_matches
from os import PathLike

from .removed import instead_of

LEAST_LIKENESS = 0.6  # of a suggested name, from 0 to 1
MOST_LISTED = 40  # names in a message; of more, the CLOSE most similar ones
CLOSE = 5


class UsageError(ValueError):
    """Raised for something that the person running a command can fix.

    Its text is one line: `where: what: remedy`. Commands print it without a traceback and exit with
    status 2 (`--debug` shows the traceback).

    Args:
        fault: one clause, without a full stop.
        remedy: the next step.
        where: the file, folder or setting that is concerned; printed unless `fault` names it
            already.
    """

    def __init__(self, fault: str, remedy: str = "", where: str | PathLike | None = None):
        # Torch raises it again for a DataLoader worker, with a traceback as its text
        if fault.startswith("Caught "):
            lines = re.findall(
                rf"^[\w.<>]*\b{type(self).__name__}: (.*)$", fault, flags=re.MULTILINE
            )
            fault = lines[-1] if lines else fault
        super().__init__(fault, remedy, where)  # all of them, so that the error survives pickling
        self.fault = fault
        self.remedy = remedy
        self.where = where

    def __str__(self) -> str:
        where = "" if self.where is None or str(self.where) in self.fault else str(self.where)
        return ": ".join(part for part in (where, self.fault, self.remedy) if part)


class MissingFileError(UsageError, FileNotFoundError):
    """Raised when a file does not exist; also a `FileNotFoundError`."""


class UnknownNameError(UsageError, KeyError):
    """Raised for an unknown name of a setting or of a registered object; also a `KeyError`, as in
    yacs.
    """


def one_line(text: object) -> str:
    """At most 200 printable characters of a text, or of an error; the name of its class if it has
    no text.
    """
    line = " ".join(str(text).split()) or type(text).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in line[:200])


def closest(name: object, known: Iterable[object]) -> str:
    """The known name that `name` is most likely a misspelling of, or an empty string.

    The same last name in another group (`OPTIM.LR`) counts for more than similar letters.
    """

    def likeness(candidate: str) -> float:
        given = str(name).lower()
        other = candidate.lower()
        same_last = given.rpartition(".")[2] == other.rpartition(".")[2]
        return SequenceMatcher(None, given, other).ratio() + 0.3 * same_last

    best = max(map(str, known), key=likeness, default="")
    return best if best and likeness(best) >= LEAST_LIKENESS else ""


def suggestion(name: object, known: Iterable[object]) -> str:
    """`; did you mean X?` with the closest known name, `; X was removed: ...`, or an empty
    string.
    """
    if gone := instead_of(name):
        return f"; {gone}"
    near = closest(name, known)
    return f"; did you mean {near}?" if near else ""


def listed(name: object, known: Sequence[str]) -> str:
    """The known names; of many those that are most like a name."""
    if len(known) <= MOST_LISTED:
        return ", ".join(sorted(known, key=str.lower)) or "none"
    near = get_close_matches(str(name), known, CLOSE, cutoff=0)
    return f"{len(known)}, such as {', '.join(near)}"


def check_name(
    name: object,
    known: Iterable[object],
    kind: str,
    where: str | PathLike | None = None,
    otherwise: str = "",
) -> None:
    """Check that `name` is one of the known ones. Raises UsageError if it is not. The message says
    that it was removed, or names the closest one or the known ones, and `otherwise`."""
    names = [str(candidate) for candidate in known]
    if str(name) not in names:
        near = closest(name, names)
        if near or instead_of(name):
            remedy = instead_of(name) or f"did you mean {near}?"
            remedy += f" ({otherwise})" if otherwise else ""
        else:
            remedy = f"{otherwise}; " if otherwise else ""
            remedy += f"known are {listed(name, names)}"
        raise UsageError(f"there is no {kind} {name!r}", remedy, where)


def check_dataset_name(name: str, known: Iterable[str]) -> None:
    """Check that `name` is one of the known datasets; as for `check_name`."""
    check_name(name, known, "dataset", otherwise="for your own images see docs/datasets.md")
