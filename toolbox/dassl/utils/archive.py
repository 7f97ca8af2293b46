"""Files of checkpoints: written in one step, with a checksum at their end that is checked when they are read."""

import contextlib
import hashlib
import io
import os
import re
import zipfile

from .pickles import LEGACY, MAX_PICKLE, Checker, DamagedError

SEAL = b"sha256:"  # before the 64 hexadecimal digits
SEAL_LENGTH = len(SEAL) + 64
BLOCK = 1 << 20
TEMPORARY = r"\.(checkpoint|model\.pth\.tar-\d+|model-best\.pth\.tar)\.\d+\.tmp"  # name of an unfinished file


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


class CheckpointFile(io.BufferedReader):
    """A file for `check_whole` and then torch. While it is checked, no piece that is read is larger than `limit`."""

    limit = MAX_PICKLE

    def read(self, size=-1, /):
        if self.limit and (size or 0) > self.limit:  # zipfile reads the list of members in one piece
            raise DamagedError("its list of members is too long")
        return super().read(size)


def check_whole(file):
    """Check a checkpoint before torch reads it.

    It is compared with its seal; without one (the published code writes none), its content with the CRCs. Legacy files
    of torch, which are not archives, have no checksum. Its pickles are checked in any case: whoever changes a file can
    write its seal.

    Args:
        file (CheckpointFile).

    Returns:
        what it holds beside tensors and plain values, for ``torch.serialization.safe_globals``.

    Raises:
        DamagedError: it differs from its checksum, or torch should not read it.
        Exception: nearly any, for a damaged file.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - SEAL_LENGTH))
    end = file.read(SEAL_LENGTH)
    file.seek(0)
    zipped = file.read(2) == b"PK"
    sealed = end.startswith(SEAL)
    if sealed and _sha256(file, size - 64) != end[len(SEAL) :]:
        raise DamagedError("its content differs from its SHA-256")
    file.seek(0)
    if not zipped:
        return _check_legacy(file, size)
    if not sealed and not (end[-22:].startswith(b"PK\5\6") and end.endswith(b"\0\0")):
        raise DamagedError("its end is missing or changed")
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        # torch compresses nothing: a small file cannot fill the memory.
        if any(member.compress_type for member in members) or sum(member.file_size for member in members) > size:
            raise DamagedError("it is compressed")
        if not sealed and (damaged := archive.testzip()):
            raise DamagedError(f"the CRC of {damaged} differs")
        return check_archive(archive)


def check_archive(archive):
    """Check the pickle in a ``zipfile.ZipFile``, and that every storage has as many bytes as its tensors say."""
    members = {member.filename.partition("/")[2].lower(): member for member in archive.infolist()}
    if len(members) < len(archive.infolist()):  # torch does not distinguish small from capital letters
        raise DamagedError("two members have the same name")
    if members["data.pkl"].file_size > MAX_PICKLE:
        raise DamagedError(f"its pickle has more than {MAX_PICKLE} bytes")
    checker = Checker(io.BytesIO(archive.read(members["data.pkl"])))
    if any(members[f"data/{key}".lower()].file_size != nbytes for key, nbytes in checker.nbytes.items()):
        raise DamagedError("a storage has another size than its tensors say")
    return checker.allowed


def _check_legacy(file, size):
    """Check the five pickles in a file of ``size`` bytes that torch.save wrote before version 1.6."""
    start = io.BytesIO(file.read(MAX_PICKLE))
    magic, _, _, content, keys = (Checker(start) for _ in range(5))
    if magic.content != LEGACY or not all(type(key) is str for key in keys.content):
        raise DamagedError("torch.save has not written it")
    if sum(content.nbytes.values()) > size:
        raise DamagedError("its tensors are larger than the file")
    return content.allowed


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
