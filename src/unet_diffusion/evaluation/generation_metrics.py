"""Metrics that compare generated with real images.

The same images give a different Frechet distance with another number of images, feature extractor
or reference: compare at equal ones only.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from unet_diffusion.evaluation.neighbors import coverage, precision_and_recall

_KID_SUBSETS, _KID_SUBSET_SIZE = 50, 1000
METRIC_FORMATS = {
    "frechet_distance": ".3f",
    "kernel_distance": ".4f",
    "precision": ".3f",
    "recall": ".3f",
    "coverage": ".3f",
}


@dataclass(frozen=True)
class GenerationMetrics:
    """Comparison of two sets of images."""

    frechet_distance: float
    """Between Gaussians fitted to the features; 0 for equal sets. Falls as the number grows."""
    kernel_distance: float
    """Squared maximum mean discrepancy with a cubic kernel; about 0 for equal distributions."""
    precision: float
    """Fraction of the generated images that are within the real ones."""
    recall: float
    """Fraction of the real images that are within the generated ones."""
    coverage: float
    """Fraction of the real images with a generated one nearby."""


def generation_metrics(features: Tensor, real: Tensor, seed: int = 0) -> GenerationMetrics:
    """Compares the features (N, D) of generated images with those of real images (M, D).

    - Frechet distance: Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", eq. 6.
    - Kernel distance: Bińkowski et al. 2018, "Demystifying MMD GANs", sec. 4, unbiased, with the
      kernel (x y / D + 1)**3; a mean over random subsets.
    - Precision, recall, coverage: see `neighbors`; of a random subset of the larger set, so that
      both have the same size.

    Args:
        features: of the generated images.
        real: of the real images.
        seed: of the random subsets.
    """
    features, real = features.double(), real.double()
    count = min(len(features), len(real))
    subset, real_subset = (_random_subset(points, count, seed) for points in (features, real))
    return GenerationMetrics(
        _frechet_distance(features, real),
        _kernel_distance(features, real, seed),
        *precision_and_recall(subset, real_subset),
        coverage(subset, real_subset),
    )


def _frechet_distance(features: Tensor, real: Tensor) -> float:
    metric = FrechetInceptionDistance(feature=_Identity(features.size(1)))
    metric.update(real, real=True)
    metric.update(features, real=False)
    return float(metric.compute())


def _kernel_distance(features: Tensor, real: Tensor, seed: int) -> float:
    size = min(_KID_SUBSET_SIZE, len(features), len(real))
    subsets = 1 if size == len(features) == len(real) else _KID_SUBSETS
    identity = _Identity(features.size(1))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all extracted features.*")
        metric = KernelInceptionDistance(feature=identity, subsets=subsets, subset_size=size)
    metric.update(real, real=True)
    metric.update(features, real=False)
    with torch.random.fork_rng(devices=[]):  # it chooses the subsets with the global generator
        torch.manual_seed(seed)
        return float(metric.compute()[0])


class _Identity(nn.Module):
    """Replaces the feature network of torchmetrics, whose input then is features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _random_subset(points: Tensor, count: int, seed: int) -> Tensor:
    if len(points) == count:
        return points
    return points[torch.from_numpy(np.random.default_rng(seed).permutation(len(points))[:count])]


def class_accuracy(probabilities: Tensor, labels: Tensor) -> float | None:
    """Fraction of correct predictions among images with a label; None without labels."""
    correct = (probabilities.argmax(dim=1) == labels)[labels >= 0]
    return float(correct.float().mean()) if len(correct) else None


@dataclass(frozen=True)
class Memorization:
    """Median distances to the nearest training image."""

    generated: float
    held_out: float
    """Of test images."""
    ratio: float
    """generated / held_out: about 1 for new, sharp images, lower for copies and blurred images."""
    fraction_closer: float
    """Of the generated images, closer than 99 % of the test images; 0.01 without copies."""


def memorization(generated: Tensor, held_out: Tensor) -> Memorization:
    """From the distances (N,) and (M,) of images to their nearest training image."""
    median, reference = float(generated.median()), float(held_out.median())
    closer = (generated < torch.quantile(held_out, 0.01)).float().mean()
    return Memorization(median, reference, median / max(reference, 1e-12), float(closer))
