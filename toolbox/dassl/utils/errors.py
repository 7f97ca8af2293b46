"""User-fixable errors. Their text is one line that names the problem and the remedy."""

from common.errors import MissingFileError, UnknownNameError, UsageError

__all__ = ["ChangedImageError", "ImageError", "MissingFileError", "UnknownNameError", "UsageError"]


class ImageError(UsageError, OSError):
    """Raised when an image is missing, truncated or not an image; also an ``OSError``."""


class ChangedImageError(ImageError):
    """Raised when an image file is not the one whose checksum is known."""
