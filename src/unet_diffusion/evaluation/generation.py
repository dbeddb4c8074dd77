"""How near images come to real ones: distances between sets of features, and how well the one set covers the other."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import mean, stdev

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from unet_diffusion.evaluation.neighbours import coverage, precision_and_recall

_SUBSETS, _SUBSET = 50, 1000


@dataclass(frozen=True)
class Closeness:
    """How near one set of images comes to another, by their features."""

    frechet_distance: float
    """Between the Gaussians of their features; 0 for equal ones. Falls as the number of images grows."""
    kernel_distance: float
    """Squared maximum mean discrepancy under a cubic kernel; about 0, or a little below, for sets of one kind."""
    precision: float
    """Share of these images that lie where real ones do: are they clothes?"""
    recall: float
    """Share of the real ones that lie where these do: is there every kind?"""
    coverage: float
    """Share of the real ones that have one of these nearby."""

    @staticmethod
    def mean(several: Sequence["Closeness"]) -> "Closeness":
        return Closeness(*(mean(getattr(one, field.name) for one in several) for field in fields(Closeness)))

    @staticmethod
    def spread(several: Sequence["Closeness"]) -> "Closeness":
        """Standard deviation of each figure over two or more draws."""
        return Closeness(*(stdev(getattr(one, field.name) for one in several) for field in fields(Closeness)))


class Reference:
    """Real images that others are compared with, by their features.

    Args:
        features: of the real images, (N, D).
        seed: of the random subsets that some scores are taken from.
    """

    def __init__(self, features: Tensor, seed: int = 0) -> None:
        self._features = features.double()
        self._seed = seed
        self._frechet = FrechetInceptionDistance(feature=_AsTheyAre(features.size(1)), reset_real_features=False)
        self._frechet.update(self._features, real=True)

    def closeness(self, features: Tensor) -> Closeness:
        """How near the images with these features (N, D) come to the real ones.

        The Fréchet distance takes all images of both sets; precision, recall and coverage take as many of the one as of the
        other, chosen at random from the larger; the kernel distance is a mean over random subsets.
        """
        features = features.double()
        count = min(len(features), len(self._features))
        real, these = (self._some(of, count) for of in (self._features, features))
        shares = *precision_and_recall(these, real), coverage(these, real)
        return Closeness(self.frechet_distance(features), self._kernel_distance(features), *shares)

    def frechet_distance(self, features: Tensor) -> float:
        """Fréchet distance between the Gaussians of these features (N, D) and of the real ones.

        Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", eq. 6, with any feature network in place of
        Inception. It falls as N grows: compare at equal N only.
        """
        self._frechet.reset()  # of the features before these; the real ones stay
        self._frechet.update(features.double(), real=False)
        return float(self._frechet.compute())

    def _kernel_distance(self, features: Tensor) -> float:
        """Bińkowski et al. 2018, "Demystifying MMD GANs", sec. 4: unbiased, the kernel (x y / D + 1)**3."""
        subset = min(_SUBSET, len(features), len(self._features))
        subsets = 1 if subset == len(features) == len(self._features) else _SUBSETS
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*will save all extracted features.*")
            distance = KernelInceptionDistance(feature=_AsTheyAre(features.size(1)), subsets=subsets, subset_size=subset)
        distance.update(self._features, real=True)
        distance.update(features, real=False)
        with torch.random.fork_rng(devices=[]):  # its subsets are drawn from the global stream
            torch.manual_seed(self._seed)
            return float(distance.compute()[0])

    def _some(self, features: Tensor, count: int) -> Tensor:
        if len(features) == count:
            return features
        return features[torch.from_numpy(np.random.default_rng(self._seed).permutation(len(features))[:count])]


class _AsTheyAre(nn.Module):
    """Stands in for a feature network where features are given already, so that several scores share one look at an image."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features
