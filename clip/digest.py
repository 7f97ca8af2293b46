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
