"""User-fixable errors. Their text is one line that names the problem and the remedy."""

from common.errors import MissingFileError, UnknownNameError, UsageError

__all__ = ["ImageError", "MissingFileError", "UnknownNameError", "UsageError"]


class ImageError(UsageError, OSError):
    """Raised when an image is missing, truncated or not an image; also an ``OSError``."""
