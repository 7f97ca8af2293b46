"""Which errors have a cause that the person running a command can fix, or that is the machine's; others are bugs."""

import sys
from typing import Any

from common.errors import UsageError

from .shortages import shortage


def known_error(error: BaseException) -> Exception | None:
    """The error to print in one line; None for a bug."""
    # The published Dassl does not have an error class of its own.
    own = (UsageError, *loaded("dassl.utils", "UsageError"))
    if isinstance(error, Exception) and not isinstance(error, own):
        error = shortage(error) or error
    return error if isinstance(error, Exception) and isinstance(error, (*own, OSError, FloatingPointError)) else None


def loaded(module: str, name: str) -> tuple[Any, ...]:
    """A class or function of a module, if that is imported: not every command needs torch, which takes seconds."""
    found = getattr(sys.modules.get(module), name, None)
    return () if found is None else (found,)
