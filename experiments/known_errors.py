"""Errors that the person running a command can fix, or that say what the machine lacks; all others are bugs."""

import re
import sys
from collections.abc import Iterator

from common.errors import UsageError, one_line

BATCH = "lower the batch size (of tools/predict.py: --batch-size; of a run: DATALOADER.{TRAIN_X,TEST}.BATCH_SIZE)"
WORKERS = "lower DATALOADER.NUM_WORKERS"
# Words in the text of an error, what the machine lacks, and the remedy. The first row that fits counts.
SHORTAGES = (
    (
        "CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED",
        "the memory of the GPU is full",
        f"{BATCH}, or set MODEL.BACKBONE.CHECKPOINT_TEXT True",
    ),
    ("shared memory|Bus error|file </torch_", "the shared memory is full", f"{WORKERS}, or make /dev/shm larger"),
    (
        "allocate memory|DataLoader worker .*(killed by signal|exited unexpectedly)",
        "the memory is full",
        f"{BATCH}, {WORKERS}, or set MODEL.BACKBONE.CHECKPOINT_TEXT True",
    ),
    ("Too many open files", "too many files are open", f"raise the limit by `ulimit -n 4096`, or {WORKERS}"),
    ("No space left on device", "the disk is full", "free some space, then run the same command again"),
)


def known_error(error: BaseException) -> Exception | None:
    """The error to print in one line; None for a bug."""
    own: tuple[type, ...] = (UsageError,)
    if "dassl.utils" in sys.modules:  # not every command needs it; the published Dassl has no error class of its own
        own += (getattr(sys.modules["dassl.utils"], "UsageError", UsageError),)
    if isinstance(error, own):
        return error  # type: ignore[return-value]  # both classes are exceptions
    found = shortage(error) if isinstance(error, Exception) else None
    return found or (error if isinstance(error, OSError | FloatingPointError) else None)


def shortage(error: Exception) -> UsageError | None:
    """The error for the user if this one, or one of its causes, says that something ran out; else None."""
    for cause in causes(error):
        text = "cannot allocate memory" if isinstance(cause, MemoryError) else str(cause)
        for words, what, remedy in SHORTAGES:
            if isinstance(cause, RuntimeError | OSError | MemoryError) and re.search(words, text):
                result = UsageError(f"{what} ({one_line(cause)})", remedy)
                result.__cause__ = error
                return result
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes, also those that `raise ... from None` hides."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
