"""Distributions p(t) of the time in training, defined by their inverse CDF."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor


class TimeDistribution(ABC):
    """A distribution over t in [0, 1]."""

    @abstractmethod
    def icdf(self, u: Tensor) -> Tensor:
        """Inverse cumulative distribution function: maps `u` in [0, 1] to t, same shape."""

    def sample(self, n: int, device: torch.device | None = None) -> Tensor:
        """Samples n times (n,) by stratification: one from each n-th of the distribution.

        Every sample has this distribution, and a batch covers it evenly, which lowers the variance
        of the loss (Kingma et al. 2021, "Variational Diffusion Models", app. I.1). The strata are
        in order, so the images of a batch must be shuffled.
        """
        strata = torch.arange(n, device=device)
        return self.icdf((strata + torch.rand(n, device=device)) / n)


class FixedTime(TimeDistribution):
    """The same t for every image: the lesson's noise percent, as a fraction in [0, 1]."""

    def __init__(self, percent: float = 0.5) -> None:
        if not 0 <= percent <= 1:
            hint = f" Did you mean {percent / 100:g}?" if 1 < percent <= 100 else ""
            raise ValueError(f"percent={percent:g}: expected a value in [0, 1].{hint}")
        self.percent = percent

    def icdf(self, u: Tensor) -> Tensor:
        return torch.full_like(u, self.percent)


class UniformTime(TimeDistribution):
    """Uniform on [min, max], with 0 <= min < max <= 1."""

    def __init__(self, min: float = 0.0, max: float = 1.0) -> None:
        if not 0 <= min < max <= 1:
            raise ValueError(f"min={min}, max={max}: expected 0 <= min < max <= 1.")
        self.min = min
        self.max = max

    def icdf(self, u: Tensor) -> Tensor:
        return self.min + (self.max - self.min) * u


class LogitNormalTime(TimeDistribution):
    """log(t / (1 - t)) is Gaussian, so t near 0 and 1 is rare.

    Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis",
    eq. 19.

    Args:
        mean: of the Gaussian; 0 puts the median at t = 0.5, larger values favour more noise.
        std: of the Gaussian, above 0; 1.8 is close to uniform.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        if not std > 0:
            raise ValueError(f"std={std}: expected a number above 0.")
        self.mean = mean
        self.std = std

    def icdf(self, u: Tensor) -> Tensor:
        normal = math.sqrt(2) * torch.erfinv(2 * u - 1)
        return torch.sigmoid(self.mean + self.std * normal)
