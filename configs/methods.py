"""The registered methods for studies and commands. They are imported when somebody asks: --help
does not wait.
"""

from pathlib import Path
from typing import Any

from common.start import required_packages

IN_A_FILE = "a method in a file of its own needs --plugin FILE"


def methods() -> dict[str, Any]:
    """The methods by name: classes whose attributes `trainers.base.method.Method` describes."""
    with required_packages():
        import trainers  # takes seconds

    return trainers.methods()


def plugin_of(method: str) -> Path | None:
    """The file of --plugin that has a method; None for one of this project."""
    file = methods()[method].plugin_file
    return Path(file) if file else None
