"""Shortages of a machine, of memory and open files, as errors of one line."""

import errno
import re
import resource
import sys
from collections.abc import Iterator

from common.errors import UsageError

BATCH = "lower the batch size (of tools/predict.py: --batch-size; of a run: DATALOADER.{TRAIN_X,TEST}.BATCH_SIZE)"
MEMORY = "the memory is full", f"{BATCH}, or a run's DATALOADER.NUM_WORKERS"
GPU = "the memory of the GPU is full", BATCH
FILES = "too many files are open", "raise the limit by `ulimit -n 1024`, or lower DATALOADER.NUM_WORKERS"
LIBRARY = "a library failed", f"the memory may be full: {BATCH}"
WORKER = "a process that loads images was killed", "the memory may be full: lower DATALOADER.NUM_WORKERS"
NUMBERS = {errno.ENOMEM: MEMORY, errno.EMFILE: FILES, errno.ENFILE: FILES}
# Errors of torch, of threads and of processes for these are RuntimeErrors that only their words tell apart.
WORDS = {
    "allocate memory|start new thread|failed to map segment": MEMORY,
    "Too many open files": FILES,
    r"DataLoader worker .*(killed by signal|exited unexpectedly)": WORKER,
}


def shortage(error: BaseException) -> UsageError | None:
    """The error for the user if this one, or one that it comes of, says that something ran out; else None."""
    gpu_full = getattr(sys.modules.get("torch"), "OutOfMemoryError", ())
    for cause in causes(error):
        found = NUMBERS.get(getattr(cause, "errno", None) or 0)
        if isinstance(cause, MemoryError):
            found = MEMORY
        elif isinstance(cause, SystemError):  # raised by Python for code in C that found no memory
            found = LIBRARY
        elif isinstance(cause, gpu_full):
            found = GPU
        elif isinstance(cause, RuntimeError | OSError | ImportError) and not found:
            found = next((meaning for words, meaning in WORDS.items() if re.search(words, str(cause))), None)
        if found:
            result = UsageError(*found)
            result.__cause__ = error
            return result
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those that it comes of, the hidden ones too."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def allow_open_files(workers: int) -> None:
    """Raise the limit of open files as far as the data loaders need. A worker without them would never end.

    Args:
        workers: processes of a data loader.

    Raises:
        UsageError: the limit cannot be raised that far.
    """
    needed = 32 + 16 * workers if workers else 0  # a batch of a worker has one for each of its tensors
    limit, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY not in (limit, highest) and highest < needed:
        raise UsageError(
            f"{highest} files may be open, {workers} workers need {needed}",
            f"raise the limit by `ulimit -n {needed}`, or lower DATALOADER.NUM_WORKERS",
        )
    if limit != resource.RLIM_INFINITY and limit < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, highest))
