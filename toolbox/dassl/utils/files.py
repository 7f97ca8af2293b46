"""Files that are written completely or not at all."""

import hashlib
import os
import re
from contextlib import suppress

BLOCK = 1 << 20  # bytes
TEMPORARY = r"\.(checkpoint|model\.pth\.tar-\d+|model-best\.pth\.tar)\.\d+\.tmp"  # name of an unfinished checkpoint


def write_atomically(path, parts):
    """Write a temporary file, flush it to disk, then rename it to the Path ``path``; its folder exists.

    Args:
        parts (iterable of bytes): the content.

    Raises:
        OSError: names ``path``; an earlier file is unchanged and the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # of a killed process; a link that somebody put there is not followed
        with open(temporary, "xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None:  # of the iterable
            raise
        reason = f"cannot write: {error.strerror}; an earlier file is unchanged"
        raise OSError(error.errno, reason, str(path)) from error
    finally:
        with suppress(OSError):  # the same again, with the name of the temporary file
            temporary.unlink(missing_ok=True)


def remove_stale(folder, epochs):
    """Delete from a folder of checkpoints those of some epochs, and what killed processes have not finished.

    No other process may write there.
    """
    stale = {f"model.pth.tar-{epoch}" for epoch in epochs}
    if os.path.isdir(folder) and not os.path.islink(folder):  # a link may lead to another run
        for entry in list(os.scandir(folder)):
            named = entry.name in stale or re.fullmatch(TEMPORARY, entry.name)
            if named and not entry.is_dir(follow_symlinks=False):
                with suppress(FileNotFoundError):
                    os.remove(entry.path)


def sha256_of(file, length):
    """The SHA-256, an object of hashlib, of the first bytes of a file, which is left at their end."""
    digest = hashlib.sha256()
    file.seek(0)
    while length > 0 and (block := file.read(min(BLOCK, length))):
        digest.update(block)
        length -= len(block)
    return digest
