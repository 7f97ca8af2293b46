"""Arrays in .npz files, which may be from anyone."""

import io
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .errors import UsageError


def read_arrays(file: Path, names: Iterable[str], largest: int) -> dict[str, Any]:
    """Some arrays of a file. Their sizes are checked before they are read, and their CRCs after it.

    Raises:
        KeyError: the file lacks one.
        UsageError: they have more than `largest` bytes.
        Exception: of any kind, by zipfile, its decompressors and numpy, for a damaged file.
    """
    from numpy.lib import format as npy

    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.getinfo(f"{name}.npy") for name in names}
        if sum(entry.file_size for entry in entries.values()) > largest:
            fault = f"{file} has more than {largest / 1e9:.1f} GB of arrays"
            raise UsageError(fault, "it is too large for this command: read it by numpy", file)
        contents = {name: io.BytesIO(archive.read(entry)) for name, entry in entries.items()}
    return {name: npy.read_array(content, allow_pickle=False) for name, content in contents.items()}
