"""Nearest neighbours: precision, recall and coverage, and the search for copies.

Distances are computed block by block, so that no N x N matrix is held in memory.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

_BLOCK = 1024


def nearest(queries: Tensor, reference: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Euclidean distance (N,) from each query to the nearest reference point, and its index (N,).

    Args:
        queries: (N, D).
        reference: consecutive blocks (., D) of the reference points, which may be read from disk.
    """
    distances = queries.new_full((len(queries),), float("inf"))
    indices = torch.zeros(len(queries), dtype=torch.int64)
    offset = 0
    for block in reference:
        for start in range(0, len(queries), _BLOCK):
            rows = slice(start, start + _BLOCK)
            index = torch.cdist(queries[rows], block).argmin(dim=1)
            # Again without the matrix product of cdist, whose rounding error hides exact copies.
            distance = (queries[rows] - block[index]).norm(dim=1)
            closer = distance < distances[rows]
            distances[rows] = torch.where(closer, distance, distances[rows])
            indices[rows] = torch.where(closer, index + offset, indices[rows])
        offset += len(block)
    return distances, indices


def radii(points: Tensor, k: int) -> Tensor:
    """Distance (N,) from each point (N, D) to the k-th nearest other point; N must exceed k."""
    blocks = torch.split(points, _BLOCK)
    # The nearest point is the point itself.
    return torch.cat([torch.cdist(part, points).kthvalue(k + 1).values for part in blocks])


def precision_and_recall(generated: Tensor, real: Tensor, k: int = 3) -> tuple[float, float]:
    """Fraction of generated features (N, D) within the radius of a real one (N, D); vice versa.

    Kynkäänniemi et al. 2019, "Improved Precision and Recall Metric for Assessing Generative
    Models", eq. 1 and 2; the radius of a point is the distance to its k-th neighbour.
    """
    precision = _fraction_within(generated, real, radii(real, k))
    return precision, _fraction_within(real, generated, radii(generated, k))


def coverage(generated: Tensor, real: Tensor, k: int = 5) -> float:
    """Fraction of real features (N, D) with a generated one (N, D) within their radius.

    Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics for Generative Models", eq. 5.
    Generated outliers do not raise it as they do recall.
    """
    distances, _ = nearest(real, torch.split(generated, _BLOCK))
    return float((distances <= radii(real, k)).float().mean())


def _fraction_within(points: Tensor, centers: Tensor, radius: Tensor) -> float:
    """Fraction of the points (N, D) within the radius (M,) of at least one centre (M, D)."""
    blocks = torch.split(points, _BLOCK)
    within = [(torch.cdist(part, centers) <= radius).any(dim=1) for part in blocks]
    return float(torch.cat(within).double().mean())
