"""Errors that the person running a command can mend. Their text is one line: what is wrong, and what to do."""

import re


class UsageError(ValueError):
    """Something the person running the command can mend.

    Args:
        message (str): one line. When a ``DataLoader`` worker raises a UsageError, torch raises it anew in the main
            process with the worker's whole traceback as its message; only the original line is kept then.
    """

    one_line = True  # programs print such an error as it is, without a traceback

    def __init__(self, message):
        super().__init__(self._own_line(str(message)))

    def _own_line(self, message):
        if not message.startswith("Caught "):
            return message
        # A traceback ends in "<module>.<class>: <text>"; chained causes come before it.
        lines = re.findall(rf"^[\w.<>]*\b{type(self).__name__}: (.*)$", message, flags=re.MULTILINE)
        return lines[-1] if lines else message

    def __str__(self):  # KeyError would print a repr, OSError an errno
        return self.args[0]


class UnknownNameError(UsageError, KeyError):
    """A name (config key, registered object) that nothing answers to; also a ``KeyError``, as yacs raises."""


class MissingFileError(UsageError, FileNotFoundError):
    """A file that is not there; also a ``FileNotFoundError``."""


class ImageError(UsageError, OSError):
    """An image that cannot be read: no such file, not an image, or truncated."""
