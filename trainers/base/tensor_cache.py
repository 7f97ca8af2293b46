"""Tensors that are kept on disk for other runs: one file for each, with a checksum, and a limit on the size of all.

A tensor is never copied: reading maps its file into memory, and writing reads the tensor where it lies.
"""

import hashlib
import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clip.digest import as_bytes
from common.files import replacing

TYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}
ABANDONED = 24 * 3600  # seconds after which nobody writes to an unfinished file any more


@dataclass(frozen=True)
class TensorCache:
    """The files of one kind in a folder.

    Args:
        folder: may be missing.
        kind: begins the names of the files.
        what: the tensors, in messages.
        limit: of the size of all these files, in bytes. Those that were not used for longest are deleted first.
        setting: the key of the limit, in messages.
    """

    folder: Path
    kind: str
    what: str
    limit: float
    setting: str = ""

    def file(self, key: str) -> Path:
        return self.folder / f"{self.kind}-{key}.safetensors"

    def get(self, key: str, rows: int) -> Tensor | None:
        """The finite tensor (rows, ...) of a key, a checksum of all it depends on; None if there is no sound file."""
        file = self.file(key)
        if not file.is_file():
            return None
        try:
            with safe_open(file, "pt") as content:
                tensor, facts = content.get_tensor(self.kind), content.metadata()
        except (OSError, SafetensorError):  # deleted meanwhile, or damaged
            facts = None
        if facts is None or facts != self.facts(key, tensor) or len(tensor) != rows or not finite(tensor):
            print(f"{file} is damaged: the {self.what} are computed again")
            return None
        with suppress(OSError):
            os.utime(file, follow_symlinks=False)
        return tensor

    def put(self, key: str, tensor: Tensor) -> None:
        """Keep a tensor. If it is too large, or the file cannot be written, this prints why."""
        file, tensor = self.file(key), tensor.cpu()
        if tensor.nbytes > self.limit:
            remedy = f"raise {self.setting}" if self.setting else f"the limit is {self.limit / 1e9:g} GB"
            print(f"{tensor.nbytes / 1e9:.2f} GB of {self.what} are not kept: {remedy}")
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(file) as partial:
                self.write(partial, tensor, self.facts(key, tensor))
        except OSError as error:
            print(f"The {self.what} are not kept for other runs ({error})")
            return
        with suppress(OSError):  # another process deletes them too
            self.make_room(file)

    def write(self, file: Path, tensor: Tensor, facts: dict[str, str]) -> None:
        """A file of safetensors. The library's own functions copy the tensor, or leave files if they are killed."""
        entry = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [0, tensor.nbytes]}
        header = json.dumps({"__metadata__": facts, self.kind: entry}).encode()
        header += b" " * (-len(header) % 8)
        with open(file, "wb") as content:
            content.write(len(header).to_bytes(8, "little") + header)
            content.write(as_bytes(tensor))

    def make_room(self, newest: Path) -> None:
        """Delete unfinished files that were given up, and old ones until the limit is kept."""
        for path in self.folder.glob(f".{self.kind}-*.partial"):
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()
        files = sorted(self.folder.glob(f"{self.kind}-*.safetensors"), key=lambda path: path.stat().st_mtime)
        excess = sum(path.stat().st_size for path in files) - self.limit
        for path in files:
            if excess > 0 and path != newest:
                excess -= path.stat().st_size
                path.unlink()

    def facts(self, key: str, tensor: Tensor) -> dict[str, str]:
        return {"key": key, "sha256": hashlib.sha256(as_bytes(tensor)).hexdigest()}


def finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite; it needs little memory besides the tensor."""
    return all(bool(part.isfinite().all()) for part in tensor.flatten().split(1 << 20))
