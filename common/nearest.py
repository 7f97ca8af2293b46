"""Errors about missing folders: which part of a path exists, and the content of that folder."""

from itertools import islice
from pathlib import Path

from .errors import UsageError

MOST = 200  # entries of a folder to look at
SHOWN = 20  # names in a message


def check_folder(path: Path, what: str, remedy: str) -> None:
    """Check that a folder exists.

    Args:
        path: the folder.
        what: the fault, before the path: `there is no folder`.
        remedy: the next step.

    Raises:
        UsageError: it does not; the message says how far its path exists.
    """
    if not path.is_dir():
        raise UsageError(f"{what} {path}", f"{what_exists(path)}; {remedy}", path)


def what_exists(path: Path) -> str:
    """For a missing folder: how far its path exists, and what the last folder of it holds."""
    folder = next((parent for parent in path.parents if parent.is_dir()), Path())
    if str(folder) == folder.anchor:  # the content of the file system's root does not help
        return f"its path exists up to {folder}"
    names = sorted(entry.name for entry in islice(folder.iterdir(), MOST) if not entry.name.startswith("."))
    more = ", ..." if len(names) > SHOWN else ""
    return f"its path exists up to {folder}, which holds {', '.join(names[:SHOWN]) or 'nothing'}{more}"
