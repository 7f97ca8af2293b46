from common.errors import UsageError


class ClipError(UsageError, RuntimeError):  # OpenAI's package raises RuntimeError
    """Raised for an unknown or unreadable backbone, a text that is too long, or an invalid prompt
    schedule.
    """
