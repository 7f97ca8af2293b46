class ClipError(ValueError, RuntimeError):  # OpenAI's package raises RuntimeError
    """Something the person running can mend: a backbone, a text or a prompt schedule that cannot work (one line)."""

    one_line = True  # train.py and the tools print such an error without a traceback
