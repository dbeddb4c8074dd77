"""Levels: the distribution that training draws the noise level `t` from, given by its quantile function."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from unet_diffusion.checks import fraction


class Levels(ABC):
    """A distribution of noise levels in [0, 1]."""

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """The level below which a share `u` in [0, 1] of all draws lies; same shape as `u`."""

    def draw(self, count: int, device: torch.device | None = None) -> Tensor:
        """`count` random levels, (count,)."""
        return self.quantile(torch.rand(count, device=device))


class FixedLevel(Levels):
    """The same level for every image: the lesson's noise percent, as a fraction.

    Raises:
        ValueError: `percent` is not a fraction in [0, 1].
    """

    def __init__(self, percent: float = 0.5) -> None:
        self.percent = fraction("percent", percent)

    def quantile(self, u: Tensor) -> Tensor:
        return torch.full_like(u, self.percent)
