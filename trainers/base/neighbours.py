"""Which images are near one another: sparse graphs of cosines, in memory that grows with the number
of images alone.
"""

import torch
from torch import Tensor

CELLS = 2**26  # cosines that are in memory at a time: 256 MB


def nearest(rows: Tensor, columns: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest cosines of each row with the columns, or all, in falling order, and which
    columns these are; both (rows, count).

    Args:
        rows, columns: (rows, joint) and (columns, joint), of unit length.
    """
    size = max(1, CELLS // len(columns))
    count = min(count, len(columns))
    parts = [(part @ columns.T).topk(count) for part in rows.split(size)]
    values, places = zip(*parts, strict=True)
    return torch.cat(values), torch.cat(places)


def sparse(values: Tensor, places: Tensor, columns: int) -> Tensor:
    """A sparse matrix (rows, columns) with `values` (rows, count) at the `places` of each row."""
    rows = torch.arange(len(values), device=values.device).repeat_interleave(values.shape[1])
    indices = torch.stack([rows, places.flatten()])
    return matrix(indices, values.flatten(), (len(values), columns))


def matrix(indices: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    """A sparse matrix; equal indices are added up."""
    return torch.sparse_coo_tensor(indices, values, size, check_invariants=False).coalesce()


def affinity(rows: Tensor, columns: Tensor, count: int) -> Tensor:
    """A sparse matrix (rows, columns) with the cosines of each row with its `count` nearest
    columns, without the very nearest: an image itself.
    """
    values, places = nearest(rows, columns, count + 1)
    return sparse(values[:, 1:], places[:, 1:], len(columns))
