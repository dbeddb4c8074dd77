"""Metrics that compare generated with real images.

The same images give a different Frechet distance with another number of images, feature extractor
or reference: compare at equal ones only. Distances between points are computed block by block, so
that no N x N matrix is held in memory.
"""

import warnings
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

_KID_SUBSETS, _KID_SUBSET_SIZE = 50, 1000
_BLOCK = 1024
METRIC_FORMATS = {
    "frechet_distance": ".3f",  # between Gaussians fitted to the features; 0 for equal sets
    "kernel_distance": ".4f",  # squared maximum mean discrepancy; about 0 for equal distributions
    "precision": ".3f",  # fraction of the generated images that are within the real ones
    "recall": ".3f",  # fraction of the real images that are within the generated ones
    "coverage": ".3f",  # fraction of the real images with a generated one nearby
}


def generation_metrics(features: Tensor, real: Tensor, seed: int = 0) -> dict[str, float]:
    """Compares the features (N, D) of generated images with those of real images (M, D).

    - Frechet distance: Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", eq. 6.
    - Kernel distance: Bińkowski et al. 2018, "Demystifying MMD GANs", sec. 4, unbiased, with the
      kernel (x y / D + 1)**3; a mean over random subsets.
    - Precision, recall, coverage: see below; of a random subset of the larger set, so that both
      have the same size.

    The seed is that of the random subsets.
    """
    features, real = features.double(), real.double()
    count = min(len(features), len(real))
    size = min(_KID_SUBSET_SIZE, count)
    subsets = 1 if size == len(features) == len(real) else _KID_SUBSETS
    identity = _Identity(features.size(1))
    frechet_distance = FrechetInceptionDistance(identity)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all extracted features.*")
        kernel_distance = KernelInceptionDistance(identity, subsets=subsets, subset_size=size)
    for metric in (frechet_distance, kernel_distance):
        metric.update(real, real=True)
        metric.update(features, real=False)
    with torch.random.fork_rng(devices=[]):  # it chooses the subsets with the global generator
        torch.manual_seed(seed)
        kernel_mean, _ = kernel_distance.compute()
    subset, real_subset = (
        points[np.random.default_rng(seed).permutation(len(points))[:count]]
        if len(points) > count
        else points
        for points in (features, real)
    )
    return {
        "frechet_distance": float(frechet_distance.compute()),
        "kernel_distance": float(kernel_mean),
        "precision": fraction_within(subset, real_subset),
        "recall": fraction_within(real_subset, subset),
        "coverage": coverage(subset, real_subset),
    }


class _Identity(nn.Module):
    """Replaces the feature network of torchmetrics, whose input then is features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


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


def fraction_within(points: Tensor, centers: Tensor, k: int = 3) -> float:
    """Fraction of the points (N, D) within the radius of at least one center (M, D).

    Precision for generated points and real centers, recall for the reverse: Kynkäänniemi et al.
    2019, "Improved Precision and Recall Metric for Assessing Generative Models", eq. 1 and 2.
    """
    radius = radii(centers, k)
    blocks = torch.split(points, _BLOCK)
    within = [(torch.cdist(part, centers) <= radius).any(dim=1) for part in blocks]
    return float(torch.cat(within).double().mean())


def coverage(generated: Tensor, real: Tensor, k: int = 5) -> float:
    """Fraction of real features (N, D) with a generated one (N, D) within their radius.

    Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics for Generative Models", eq. 5.
    Generated outliers do not raise it as they do recall.
    """
    distances, _ = nearest(real, torch.split(generated, _BLOCK))
    return float((distances <= radii(real, k)).float().mean())


def memorization(generated: Tensor, held_out: Tensor) -> dict[str, float]:
    """From the distances (N,) and (M,) of images to their nearest training image.

    Returns:
        Median distances `generated` and `held_out`; their `ratio`, about 1 for new, sharp images
        and lower for copies and blurred images; and `fraction_closer`, of the generated images that
        are closer than 99 % of the test images: 0.01 without copies.
    """
    median, reference = float(generated.median()), float(held_out.median())
    closer = (generated < torch.quantile(held_out, 0.01)).float().mean()
    return {
        "generated": median,
        "held_out": reference,
        "ratio": median / max(reference, 1e-12),
        "fraction_closer": float(closer),
    }
