"""Levels: the distribution that training draws the noise level `t` from, given by its quantile function."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from unet_diffusion.checks import fraction, number


class Levels(ABC):
    """A distribution of noise levels in [0, 1]."""

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """The level below which a share `u` in [0, 1] of all draws lies; same shape as `u`."""

    def draw(self, count: int, device: torch.device | None = None) -> Tensor:
        """`count` random levels, (count,), stratified: one from each of `count` equal shares of the distribution.

        Each level by itself has this distribution, and a batch covers it evenly, which lowers the variance of the loss
        (Kingma et al. 2021, "Variational Diffusion Models", app. I.1). The shares are in order; images must not be.
        """
        strata = torch.arange(count, device=device)
        return self.quantile((strata + torch.rand(count, device=device)) / count)


class FixedLevel(Levels):
    """The same level for every image: the lesson's noise percent, as a fraction.

    Raises:
        ValueError: `percent` is not a fraction in [0, 1].
    """

    def __init__(self, percent: float = 0.5) -> None:
        self.percent = fraction("percent", percent)

    def quantile(self, u: Tensor) -> Tensor:
        return torch.full_like(u, self.percent)


class UniformLevels(Levels):
    """Every level between two is as likely.

    Args:
        low: lowest level, a fraction.
        high: highest level, a fraction above `low`.

    Raises:
        ValueError: `low` or `high` is no fraction, or they do not leave a range.
    """

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        self.low, self.high = fraction("low", low), fraction("high", high)
        if not self.low < self.high:
            raise ValueError(f"low={low} must lie below high={high}")

    def quantile(self, u: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * u


class LogitNormalLevels(Levels):
    """log(t / (1 - t)) is Gaussian: middle levels are likely, both ends rare.

    Esser et al. 2024, "Scaling Rectified Flow Transformers", eq. 19.

    Args:
        mean: of the Gaussian; 0: half of all levels lie below 0.5; above 0 favours noisier images.
        std: of the Gaussian, above 0; 1.8 comes near to uniform.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        self.mean = number("mean", mean)
        self.std = number("std", std, low=1e-3)

    def quantile(self, u: Tensor) -> Tensor:
        normal = math.sqrt(2) * torch.erfinv(2 * u - 1)
        return torch.sigmoid(self.mean + self.std * normal)
