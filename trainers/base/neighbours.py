"""Which images are near one another: sparse graphs of cosines, in memory that grows with the number
of images alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

CELLS = 2**26  # cosines that are in memory at a time: 256 MB
LEAST = 1e-12  # of a change of the scores, as a share of the largest: the end of the iterations


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


def matrix(indices: Tensor, values: Tensor, size: Sequence[int]) -> Tensor:
    """A sparse matrix; equal indices are added up."""
    return torch.sparse_coo_tensor(indices, values, tuple(size), check_invariants=False).coalesce()


def affinity(rows: Tensor, columns: Tensor, count: int) -> Tensor:
    """A sparse matrix (rows, columns) with the cosines of each row with its `count` nearest
    columns, without the very nearest: an image itself.
    """
    values, places = nearest(rows, columns, count + 1)
    return sparse(values[:, 1:], places[:, 1:], len(columns))


def normalised(half: Tensor) -> Tensor:
    """The symmetric matrix (nodes, nodes) of a sparse graph and its transpose, divided by the
    square roots of the degrees of both nodes.
    """
    whole = (half + half.T).coalesce()
    degrees = torch.sparse.sum(whole, dim=1).to_dense()
    scale = degrees.masked_fill(degrees == 0, 1).rsqrt()
    start, end = whole.indices()
    return matrix(whole.indices(), scale[start] * whole.values() * scale[end], half.shape)


def propagated(graph: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """(nodes, classes), fp64: the solution of (1 - alpha graph) x = labels.

    The eigenvalues of the graph are at most 1, so that each iteration divides the error by alpha.

    Args:
        graph: (nodes, nodes), by `normalised`.
        labels: (nodes, classes), fp64; 0 for nodes without a label.
        alpha: the share of a label that its neighbours get; below 1.
    """
    unlabelled = ~labels.any(dim=1)
    scores = labels
    while True:
        following = labels + alpha * (graph @ scores)
        change = (following - scores).abs().max()
        scores = following
        if change <= LEAST * scores[unlabelled].abs().max():
            return scores
