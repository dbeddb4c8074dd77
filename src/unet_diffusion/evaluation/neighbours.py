"""Nearest neighbours: which real images a drawn one is close to, and how much of the real ones the drawn ones cover.

Distances are taken block by block on both sides, so that memory does not grow with the number of images.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

_BLOCK = 2048


class Rows(Protocol):
    """What points can be read from: a tensor, or images that stay on disk until they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | Tensor, /) -> Tensor: ...


def nearest(queries: Tensor, among: Rows, vectors: Callable[[Tensor], Tensor] = lambda points: points) -> tuple[Tensor, Tensor]:
    """For each of `queries` (N, ...), the Euclidean distance (N,) to the nearest of `among` (M, ...), and its row (N,).

    `vectors` turns both into (., D), a block at a time, so that images can stay bytes until they are looked at.
    """
    found = [_nearest(vectors(part), among, vectors) for part in torch.split(queries, _BLOCK)]
    distances, rows = zip(*found, strict=True)
    return torch.cat(distances), torch.cat(rows)


def radii(points: Tensor, k: int) -> Tensor:
    """The distance (N,) from each of the points (N, D) to the k-th nearest other one; N must be above k."""
    reach = []
    for part in torch.split(points, _BLOCK):
        least = part.new_empty(len(part), 0)
        for others in torch.split(points, _BLOCK):
            both = torch.cat([least, torch.cdist(part, others)], dim=1)
            least = both.topk(min(k + 1, both.size(1)), dim=1, largest=False).values  # the nearest is the point itself
        reach.append(least[:, k])
    return torch.cat(reach)


def precision_and_recall(drawn: Tensor, real: Tensor, k: int = 3) -> tuple[float, float]:
    """Precision: share of the drawn that lie within reach of a real one; recall: of the real, within reach of a drawn one.

    Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric for Assessing Generative Models", eq. 1 and 2: a point
    reaches as far as its k-th neighbour among its own kind. Both are features (N, D), as many of the one as of the other.
    """
    return _share_reached(drawn, real, radii(real, k)), _share_reached(real, drawn, radii(drawn, k))


def coverage(drawn: Tensor, real: Tensor, k: int = 5) -> float:
    """Share of the real that have a drawn one within their own reach; unlike recall it does not gain by drawn outliers.

    Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics for Generative Models", eq. 5. Sets of one kind and size have
    about 1 - 1 / 2**k.
    """
    return float((nearest(real, drawn)[0] <= radii(real, k)).float().mean())


def _nearest(sought: Tensor, among: Rows, vectors: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    best, rows = sought.new_full((len(sought),), float("inf")), torch.zeros(len(sought), dtype=torch.long)
    for first in range(0, len(among), _BLOCK):
        value, row = torch.cdist(sought, vectors(among[first : first + _BLOCK])).min(dim=1)
        nearer = value < best
        best, rows = torch.where(nearer, value, best), torch.where(nearer, row + first, rows)
    # anew from the rows: distances by way of a matrix product are rounded badly where two images are nearly the same
    return (sought - vectors(among[rows])).norm(dim=1), rows


def _share_reached(points: Tensor, centres: Tensor, reach: Tensor) -> float:
    reached = 0
    for part in torch.split(points, _BLOCK):
        within = torch.zeros(len(part), dtype=torch.bool)
        for near, far in zip(torch.split(centres, _BLOCK), torch.split(reach, _BLOCK), strict=True):
            within |= (torch.cdist(part, near) <= far).any(dim=1)
        reached += int(within.sum())
    return reached / len(points)
