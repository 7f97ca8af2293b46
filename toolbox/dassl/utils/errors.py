"""User-fixable errors. Their text is one line that names the problem and the remedy."""

import re


class UsageError(ValueError):
    """Raised for something that the person running the command can fix.

    Args:
        message (str): one line. When a ``DataLoader`` worker raises a UsageError, torch raises it again in the main
            process with the worker's traceback as its message; only the original line is kept then.
    """

    def __init__(self, message):
        super().__init__(self._own_line(str(message)))

    def _own_line(self, message):
        if not message.startswith("Caught "):
            return message
        # A traceback ends in "<module>.<class>: <text>"; chained causes come before it.
        lines = re.findall(rf"^[\w.<>]*\b{type(self).__name__}: (.*)$", message, flags=re.MULTILINE)
        return lines[-1] if lines else message

    def __str__(self):  # the str() of KeyError is a repr, that of OSError starts with an errno
        return self.args[0]


class UnknownNameError(UsageError, KeyError):
    """Raised for an unknown name (of a config key or a registered object); also a ``KeyError``, as in yacs."""


class MissingFileError(UsageError, FileNotFoundError):
    """Raised when a file does not exist; also a ``FileNotFoundError``."""


class ImageError(UsageError, OSError):
    """Raised when an image is missing, truncated or not an image; also an ``OSError``."""
