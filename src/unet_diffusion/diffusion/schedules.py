"""Noise schedules: xt = alpha(t) * x0 + sigma(t) * eps, clean at t = 0 and pure noise at t = 1."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Schedule(ABC):
    """The coefficients at `t` of any shape, same shape."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Coefficient of the clean image."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Coefficient of the noise."""

    @abstractmethod
    def velocity_coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(p, q) of the velocity p * x0 + q * eps, which is d xt / dt up to a positive factor."""

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Noisy images xt (B, C, H, W) from clean images, standard Gaussian noise and t (B,)."""
        t = t[:, None, None, None]
        return self.alpha(t) * x0 + self.sigma(t) * eps

    def time_of_noise(self, std: Tensor, additive: bool = True) -> Tensor:
        """The t at which the noise has a standard deviation of any shape, same shape; at most 1.

        That of sigma(t) * eps or, for noise that was added to a clean image, of
        sigma(t) / alpha(t) * eps.
        """
        grid = torch.linspace(0, 1, 10_001, dtype=torch.float64)
        levels = self.sigma(grid) / (self.alpha(grid) if additive else 1)
        grid, levels = grid.to(std), levels.to(std)
        i = torch.searchsorted(levels, std.contiguous()).clamp(1, len(grid) - 1)
        weight = ((std - levels[i - 1]) / (levels[i] - levels[i - 1])).clamp(0, 1)
        return torch.lerp(grid[i - 1], grid[i], weight)


class LinearSchedule(Schedule):
    """The lesson's schedule: alpha = 1 - t, sigma = t.

    It is the straight path of rectified flow (Liu et al. 2022, "Flow Straight and Fast", eq. 1);
    its velocity is eps - x0.
    """

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def velocity_coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)


class VariancePreservingSchedule(Schedule):
    """Schedules with alpha**2 + sigma**2 = 1: (alpha, sigma) rotates by at most 90 degrees.

    The velocity is the derivative by that angle, alpha * eps - sigma * x0 (Salimans and Ho 2022,
    "Progressive Distillation for Fast Sampling of Diffusion Models", sec. 4). It is d xt / dt up
    to a positive factor and stays finite where sigma grows like a square root.
    """

    def velocity_coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -self.sigma(t), self.alpha(t)


class CosineSchedule(VariancePreservingSchedule):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): the angle grows linearly.

    Nichol and Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models", eq. 17, without
    the offset that keeps their discrete steps from becoming too small.
    """

    def alpha(self, t: Tensor) -> Tensor:
        # Written as a sine, which is exactly 0 at t = 1.
        return torch.sin(math.pi / 2 * (1 - t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * t)


class DDPMSchedule(VariancePreservingSchedule):
    """The linear beta schedule of DDPM, continuous in `t`.

    alpha = exp(-(beta_min t + (beta_max - beta_min) t**2 / 2) / 2): Song et al. 2021, "Score-Based
    Generative Modeling through Stochastic Differential Equations", eq. 33; the limit of Ho et al.
    2020, "Denoising Diffusion Probabilistic Models", for many steps.

    Args:
        beta_min: beta at t = 0, above 0.
        beta_max: beta at t = 1, at least `beta_min`.
        zero_terminal_snr: rescale alpha to reach 0 at t = 1 (Lin et al. 2023, "Common Diffusion
            Noise Schedules and Sample Steps are Flawed", alg. 1). Otherwise alpha(1) = 0.0066 with
            the default betas, and sampling starts from noise with standard deviation sigma(1).
    """

    def __init__(
        self, beta_min: float = 0.1, beta_max: float = 20.0, zero_terminal_snr: bool = False
    ) -> None:
        if not 0 < beta_min <= beta_max:
            raise ValueError(f"beta_min={beta_min}: expected 0 < beta_min <= beta_max={beta_max}.")
        self.beta_min = beta_min
        self.beta_max = beta_max
        self.terminal_alpha = 0.0
        if zero_terminal_snr:
            self.terminal_alpha = float(self._log_alpha(torch.ones((), dtype=torch.float64)).exp())

    def alpha(self, t: Tensor) -> Tensor:
        return (self._log_alpha(t).exp() - self.terminal_alpha) / (1 - self.terminal_alpha)

    def sigma(self, t: Tensor) -> Tensor:
        # sqrt((1 - alpha) (1 + alpha)) with 1 - alpha by expm1: exact near t = 0.
        one_minus_alpha = -torch.expm1(self._log_alpha(t)) / (1 - self.terminal_alpha)
        return (one_minus_alpha * (2 - one_minus_alpha)).sqrt()

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -(self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2) / 2
