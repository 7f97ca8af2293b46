"""The version of this project, and the commit that is checked out."""

import re
import subprocess
from datetime import datetime, timezone
from functools import cache
from pathlib import Path

__version__ = "1.0.0"
# The files that a result depends on. Other files, such as a virtual environment, are not changes.
COMPUTING = (
    "train.py",
    "clip",
    "common",
    "configs",
    "datasets",
    "fit",
    "inference",
    "measures",
    "runs",
    "studies",
    "toolbox",
    "trainers",
)
NEW_SETTINGS = re.compile(r'\?\? "?(configs|studies)/.*\.ya?ml"?$')  # in the output of git status
ROOT = Path(__file__).resolve().parent.parent  # the project's folder
INSTALLED = "." in __name__.partition("common")[0]  # whether pip has installed it, under one name


@cache
def source() -> dict:
    """`version`, `commit` (None outside a git checkout), and `dirty`: whether code or settings
    differ from it.

    A new YAML file in configs/ or studies/ does not count: the config.yaml of a run has its
    settings.
    """
    commit = git("rev-parse", "HEAD")
    status = git("status", "--porcelain", "-uall", "--", *COMPUTING) if commit else None
    changed = [line for line in (status or "").splitlines() if not NEW_SETTINGS.match(line)]
    return {
        "version": __version__,
        "commit": commit,
        "dirty": None if status is None else bool(changed),
    }


def made() -> dict:
    """`source`, and `date`, of what is written now."""
    return source() | {"date": datetime.now(timezone.utc).isoformat(timespec="seconds")}


def git(*arguments: str) -> str | None:
    """What git prints for the project's folder; None where that is not a checkout, or there is no
    git.
    """
    try:
        if not (ROOT / ".git").exists():  # a copy inside another checkout has no commit of its own
            return None
        done = subprocess.run(
            ["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
