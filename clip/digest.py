"""Checksums of tensors."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def as_bytes(tensor: Tensor) -> Any:
    """Its content, as an array of bytes."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def add_tensors(digest: Any, tensors: Mapping[str, Tensor]) -> None:
    """Add names, types, shapes and contents of tensors to a checksum of hashlib."""
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(as_bytes(tensor))


def digest(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of names, types, shapes and contents of tensors, in hexadecimal."""
    sha256 = hashlib.sha256()
    add_tensors(sha256, tensors)
    return sha256.hexdigest()


class Key:
    """The facts that a result on disk depends on; their checksum is its name.

    Args:
        result: in words.
        version: of the code that computes it; another one gives another key.
        parts: what it depends on, by name: their texts count.
    """

    def __init__(self, result: str, version: int, **parts: Any):
        self._digest = hashlib.sha256(f"{result} {version}\n".encode())
        for name, part in parts.items():
            self.add(f"{name} {part}\n".encode())

    def add(self, content: bytes) -> None:
        """Add bytes."""
        self._digest.update(content)

    def add_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Add names, types, shapes and contents of tensors."""
        add_tensors(self._digest, tensors)

    def copy(self) -> "Key":
        """Another key that has these parts."""
        other = Key("", 0)
        other._digest = self._digest.copy()
        return other

    def __str__(self) -> str:
        """32 letters."""
        return self._digest.hexdigest()[:32]
