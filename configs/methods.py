"""The registered methods for studies and commands. They are imported when somebody asks: --help
does not wait.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.errors import UsageError, check_name
from common.start import required_packages

IN_A_FILE = "a method in a file of its own needs --plugin FILE"


def methods() -> dict[str, Any]:
    """The methods by name: classes whose attributes `trainers.base.method.Method` describes."""
    with required_packages():
        import trainers  # takes seconds

    return trainers.methods()


def check_method(
    name: str, known: Iterable[str], where: Path | None = None, kind: str = "method"
) -> None:
    """Raise UsageError if the name is not one of the known methods, or is a trainer of Dassl
    alone.
    """
    from dassl.engine import TRAINER_REGISTRY  # here, as --help does not wait

    names = [*known]
    if name in TRAINER_REGISTRY.registered_names() and name not in names:
        fault = f"{name} is a trainer of Dassl, not a method of this project"
        raise UsageError(fault, "train and test it by train.py", where)
    check_name(name, names, kind, where, IN_A_FILE)


def plugin_of(method: str) -> Path | None:
    """The file of --plugin that has a method; None for one of this project."""
    file = methods()[method].plugin_file
    return Path(file) if file else None
