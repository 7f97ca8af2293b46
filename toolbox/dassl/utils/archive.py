"""Files of checkpoints: written in one step, with a checksum at their end that is checked when they are read."""

import contextlib
import hashlib
import os
import re
import zipfile

SEAL = b"sha256:"  # before the 64 hexadecimal digits
SEAL_LENGTH = len(SEAL) + 64
BLOCK = 1 << 20
TEMPORARY = r"\.(checkpoint|model\.pth\.tar-\d+|model-best\.pth\.tar)\.\d+\.tmp"  # name of an unfinished file


class DamagedError(ValueError):
    """Raised for a file whose content is not what was written. The message is the reason."""


def seal(archive):
    """Append the SHA-256 of a zip archive to it as its comment, which readers of zip archives skip.

    The CRCs of an archive do not cover its directory, and torch does not check them. The seal covers every bit.

    Args:
        archive (io.BytesIO): an archive of `torch.save`; changed in place.
    """
    with archive.getbuffer() as content:
        content[-2:] = SEAL_LENGTH.to_bytes(2, "little")  # the length of the comment
    archive.seek(0, os.SEEK_END)
    archive.write(SEAL)
    digest = hashlib.sha256(archive.getbuffer()).hexdigest()
    archive.write(digest.encode())


def check_whole(file):
    """Compare an archive with its seal; without one (the published code writes none), its content with the CRCs.

    Legacy files of torch, which are not archives, have no checksum.

    Args:
        file: open for reading in binary mode.

    Raises:
        DamagedError: they differ.
        Exception: nearly any, for a damaged archive.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - SEAL_LENGTH))
    end = file.read()
    file.seek(0)
    zipped = file.read(2) == b"PK"
    sealed = end.startswith(SEAL)
    if sealed and _sha256(file, size - 64) != end[len(SEAL) :]:
        raise DamagedError("its content differs from its SHA-256")
    if not zipped:
        return
    if not sealed and not (end[-22:].startswith(b"PK\5\6") and end.endswith(b"\0\0")):
        raise DamagedError("its end is missing or changed")
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        # torch compresses nothing: a small file cannot fill the memory.
        if any(member.compress_type for member in members) or sum(member.file_size for member in members) > size:
            raise DamagedError("it is compressed")
        if not sealed and (damaged := archive.testzip()):
            raise DamagedError(f"the CRC of {damaged} differs")


def _sha256(file, length):
    """The SHA-256 of the first bytes of a file, in hexadecimal as bytes."""
    digest = hashlib.sha256()
    file.seek(0)
    while length > 0 and (block := file.read(min(BLOCK, length))):
        digest.update(block)
        length -= len(block)
    return digest.hexdigest().encode()


def write_atomically(path, content):
    """Write ``content`` (bytes) to a temporary file, then rename it to ``path``.

    Raises:
        OSError: names ``path``; an earlier file is unchanged and the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # of a killed process; a link that somebody put there is not followed
        with open(temporary, "xb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        reason = f"cannot write: {error.strerror}; an earlier file is unchanged"
        raise OSError(error.errno, reason, str(path)) from error
    except BaseException:  # interrupted
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder):
    """Flush a folder's list of files to disk, if the file system supports that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_temporary_files(folder):
    """Delete the unfinished files of killed processes in a folder of checkpoints. No other process may write there."""
    if os.path.islink(folder) or not os.path.isdir(folder):
        return
    for entry in list(os.scandir(folder)):
        if re.fullmatch(TEMPORARY, entry.name) and not entry.is_dir(follow_symlinks=False):
            os.remove(entry.path)
