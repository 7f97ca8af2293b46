"""Tensors that are kept on disk for other runs. They are never copied: reading maps the file into memory."""

import math

import torch
from torch import Tensor

from clip.digest import as_bytes
from common.cache import DiskCache


def get_tensor(cache: DiskCache, key: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    """The tensor of a key; None if there is no file with it, of this shape and type."""
    content = cache.get(key, f"{dtype} {tuple(shape)}", math.prod(shape) * dtype.itemsize)
    return None if content is None else torch.frombuffer(content, dtype=dtype, count=math.prod(shape)).reshape(shape)


def put_tensor(cache: DiskCache, key: str, tensor: Tensor) -> None:
    """Keep a tensor. If it is too large, or the file cannot be written, this prints why."""
    cache.put(key, f"{tensor.dtype} {tuple(tensor.shape)}", tensor.nbytes, [as_bytes(tensor)])
