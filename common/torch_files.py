"""Reads files of torch.save as tensors and plain values, with torch's own loader: nothing that a
file names runs.
"""

import hashlib
import io
import pickle
import re
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import one_line

SEAL = b"sha256:"
SEAL_DIGITS = 64
LOADING = threading.Lock()  # the names that torch's loader accepts are those of the whole process


class DamagedError(ValueError):
    """Raised for a file that is damaged, or holds more than tensors and plain values. The message
    is the reason.
    """


def sealed(archive: bytes) -> bytes:
    """The bytes that `torch.save` wrote, a zip archive, with their SHA-256 as its comment, which
    other readers skip.

    The CRCs of an archive do not cover its list of members. The seal covers every bit.
    """
    # The last two bytes of an archive are the length of its comment.
    content = archive[:-2] + (len(SEAL) + SEAL_DIGITS).to_bytes(2, "little") + SEAL
    return content + hashlib.sha256(content).hexdigest().encode()


def read_torch_file(path: Path, stubs: Mapping[str, Any] | None = None) -> Any:
    """The content of a file of torch.save, on the CPU. Its seal is verified or, without one, the
    CRCs of its members.

    Args:
        path: a regular file. What torch 1.5 and older wrote has no checksum.
        stubs: what a class or function that the file names becomes, by its full name. torch refuses
            all others but its own for tensors and plain values.

    Raises:
        DamagedError: it is damaged, compressed, a TorchScript archive, or names something else.
        OSError: it cannot be read.
        MemoryError: it does not fit into memory.
    """
    import torch

    try:
        with open(path, "rb") as file:
            if file.read(2) == b"PK":
                check_archive(file)
            file.seek(0)
            known: list[Any] = [(stub, name) for name, stub in (stubs or {}).items()]
            with LOADING, torch.serialization.safe_globals(known):
                return torch.load(file, map_location="cpu", weights_only=True)
    except (MemoryError, DamagedError):
        raise
    except Exception as error:  # a damaged file makes the loader fail in any way
        if isinstance(error, OSError) and error.filename is not None:
            raise
        if "allocate memory" in str(error):
            raise MemoryError(one_line(error)) from error
        raise DamagedError(one_line(reason_of(error))) from error


def reason_of(error: Exception) -> str:
    """Why torch does not load a file."""
    is_refusal = isinstance(error, pickle.UnpicklingError)
    refused = re.search(r"GLOBAL (\S+)", str(error)) if is_refusal else None
    if refused:
        fault = f"it contains {refused[1]}, which is neither a tensor nor a plain value"
        return f"{fault}, and is not loaded"
    return str(error).rpartition("WeightsUnpickler error: ")[2] or type(error).__name__


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive of torch.jit.save, which is a program."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def check_archive(file: io.BufferedReader) -> None:
    """Check the seal of a zip archive, or the CRCs of its members, and that it is as large as they
    are.
    """
    with zipfile.ZipFile(file) as archive:
        size = file.seek(0, io.SEEK_END)
        members = archive.infolist()
        # A small file cannot fill the memory
        if sum(member.file_size for member in members) > size:
            raise DamagedError("it is compressed")
        # torch would return memory that nobody has written for a member that counts as a folder or
        # has two sizes.
        if any(
            member.external_attr & 0x10 or member.file_size != member.compress_size
            for member in members
        ):
            raise DamagedError("its list of members is not one of torch")
        if archive.comment:
            file.seek(0)
            digest = hashlib.sha256()
            left = size - SEAL_DIGITS
            while left > 0 and (block := file.read(min(1 << 20, left))):
                digest.update(block)
                left -= len(block)
            if archive.comment != SEAL + digest.hexdigest().encode():
                raise DamagedError("its content differs from its SHA-256")
        elif damaged := archive.testzip():
            raise DamagedError(f"the CRC of {damaged} differs")
