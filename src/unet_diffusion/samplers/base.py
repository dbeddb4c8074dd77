"""Samplers turn noise into images by asking a denoiser. They share one loop; a sampler is one step of it."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

DenoiserLike = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""`denoiser(xt, t, label) -> x0_hat`; a `Denoiser`, or any function that answers alike (an oracle in a test)."""


class Sampler(ABC):
    """The shared loop: from pure noise at t = 1 down a grid of levels to an image at t = 0."""

    noise_scale: float = 1.0
    """Standard deviation of the noise at t = 1."""

    @abstractmethod
    def levels(self) -> list[float]:
        """The grid of noise levels, falling from 1 to 0; one step between each two."""

    @abstractmethod
    def step(self, denoiser: DenoiserLike, xt: Tensor, t: Tensor, s: Tensor, label: Tensor | None) -> Tensor:
        """From the noisy image at level `t` (B,) to the one at the lower level `s` (B,)."""

    @torch.inference_mode()
    def sample(self, denoiser: DenoiserLike, eps: Tensor, label: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) drawn from standard Gaussian noise `eps` of that shape; not clipped to [-1, 1]."""
        x = self.noise_scale * eps
        grid = self.levels()
        for t, s in itertools.pairwise(grid):
            x = self.step(denoiser, x, x.new_full((len(x),), t), x.new_full((len(x),), s), label)
        return x
