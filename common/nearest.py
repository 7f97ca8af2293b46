"""What there is in place of a missing folder, for errors."""

import glob
from itertools import combinations, islice
from pathlib import Path

from .errors import UsageError, closest

MOST = 200  # entries of a folder to look at: it may be anyone's
SHOWN = 8  # names in a message


def check_folder(path: Path, what: str, remedy: str) -> None:
    """Check that a folder exists.

    Args:
        path: the folder.
        what: the fault, before the path: `there is no folder`.
        remedy: the next step.

    Raises:
        UsageError: it does not; the message names the nearest folder.
    """
    if not path.is_dir():
        raise UsageError(f"{what} {path}", f"{what_exists(path)}; {remedy}", path)


def nearest_folder(path: Path) -> Path | None:
    """The folder that differs from `path` in the fewest parts, at most two; None if there is none.

    `out/imagenet/MPL/seed1` -> `out/eurosat/MPL/seed1`, or `out/eurosat/MPL/seed2`.
    """
    parts = path.parts
    first = len(existing(path).parts)  # nothing is found without another name for this part
    for others in range(2):
        for more in combinations(range(first + 1, len(parts)), others):
            pattern = ["*" if index in (first, *more) else glob.escape(part) for index, part in enumerate(parts)]
            found = [name for name in islice(glob.iglob(str(Path(*pattern))), MOST) if Path(name).is_dir()]
            if first + others == len(parts) - 1:  # no other part of the path shows that it is meant
                found = [name for name in found if Path(name).name == closest(path.name, [Path(name).name])]
            if found:
                return Path(closest(path, found) or found[0])
    return None


def existing(path: Path) -> Path:
    """The longest part of a path that is a folder."""
    return next((folder for folder in (path, *path.parents) if folder.is_dir()), Path())


def what_exists(path: Path) -> str:
    """For a missing folder: the nearest one, or how far its path exists and what that folder holds."""
    if near := nearest_folder(path):
        return f"the nearest is {near}"
    folder = existing(path)
    if str(folder) == folder.anchor:  # the content of the file system's root does not help
        return f"its path exists up to {folder}"
    names = sorted(entry.name for entry in islice(folder.iterdir(), MOST) if not entry.name.startswith("."))
    more = ", ..." if len(names) > SHOWN else ""
    return f"its path exists up to {folder}, which holds {', '.join(names[:SHOWN]) or 'nothing'}{more}"
