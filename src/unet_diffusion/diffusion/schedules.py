"""Schedules: how much image and how much noise is in a noisy image at each noise level.

xt = alpha(t) * x0 + sigma(t) * eps,    t in [0, 1], 0 = clean, 1 = only noise
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from unet_diffusion.checks import number, shortened


class Schedule(ABC):
    """The pair alpha(t), sigma(t) and its derivatives. Every function takes `t` of any shape and answers in that shape."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """How much of the image is left at level `t`."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """How much noise is there at level `t`."""

    @abstractmethod
    def alpha_dot(self, t: Tensor) -> Tensor:
        """d alpha / dt."""

    @abstractmethod
    def sigma_dot(self, t: Tensor) -> Tensor:
        """d sigma / dt; infinite at t = 0 where sigma rises like a square root."""

    def velocity_weights(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(p, q) of the velocity p * x0 + q * eps: the path's derivative d xt / dt."""
        return self.alpha_dot(t), self.sigma_dot(t)

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio alpha**2 / sigma**2; infinite at t = 0."""
        return (self.alpha(t) / self.sigma(t)) ** 2

    def mix(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The noisy image xt, (B, C, H, W), from the clean one and standard Gaussian noise of that shape; `t` is (B,)."""
        per_image = t[:, None, None, None]
        return self.alpha(per_image) * x0 + self.sigma(per_image) * eps


class LinearSchedule(Schedule):
    """The lesson's mixing law: alpha = 1 - t, sigma = t.

    It is also the straight path of rectified flow (Liu et al. 2022, "Flow Straight and Fast", eq. 1), and its velocity is
    eps - x0.
    """

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class VariancePreserving(Schedule):
    """alpha**2 + sigma**2 = 1: a turn from the image to the noise, by an angle from 0 to at most 90 degrees.

    The velocity is taken over that angle: alpha * eps - sigma * x0 (Salimans and Ho 2022, "Progressive Distillation", sec. 4).
    It is d xt / dt at another pace, and stays finite where sigma rises like a square root.
    """

    def sigma_dot(self, t: Tensor) -> Tensor:
        return -self.alpha(t) * self.alpha_dot(t) / self.sigma(t)

    def velocity_weights(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -self.sigma(t), self.alpha(t)


class CosineSchedule(VariancePreserving):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): the angle grows evenly.

    Nichol and Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models", eq. 17, without the offset that keeps
    their discrete steps from being too small.
    """

    def alpha(self, t: Tensor) -> Tensor:
        # as a sine, so that it is exactly 0 at t = 1
        return torch.sin(math.pi / 2 * (1 - t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * t)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * torch.sin(math.pi / 2 * t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return math.pi / 2 * torch.sin(math.pi / 2 * (1 - t))


class DDPMSchedule(VariancePreserving):
    """The noise rate beta grows linearly in time, as in DDPM, continuous in `t`.

    alpha = exp(-(beta_min t + (beta_max - beta_min) t**2 / 2) / 2): Song et al. 2021, "Score-Based Generative Modeling through
    SDEs", eq. 33; the limit of Ho et al. 2020, "Denoising Diffusion Probabilistic Models", for many steps.

    Args:
        beta_min: noise rate at t = 0, above 0.
        beta_max: noise rate at t = 1, `beta_min` or more.
        zero_terminal: shift and stretch alpha so that nothing of the image is left at t = 1 (Lin et al. 2023, "Common Diffusion
            Noise Schedules and Sample Steps are Flawed", alg. 1). Without, alpha(1) = 0.0066 at the default rates: drawing
            starts from noise of sigma(1), which is the true prior but for that last trace of image.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, zero_terminal: bool = False) -> None:
        self.beta_min = number("beta_min", beta_min, low=1e-6)
        self.beta_max = number("beta_max", beta_max, low=self.beta_min)
        if not isinstance(zero_terminal, bool):
            raise ValueError(f"zero_terminal={shortened(zero_terminal)} must be true or false")
        self.terminal = float(self._log_alpha(torch.ones((), dtype=torch.float64)).exp()) if zero_terminal else 0.0

    def alpha(self, t: Tensor) -> Tensor:
        return (self._log_alpha(t).exp() - self.terminal) / (1 - self.terminal)

    def sigma(self, t: Tensor) -> Tensor:
        # 1 - alpha**2 = (1 - alpha) (1 + alpha), and 1 - alpha by expm1: exact near t = 0, where alpha is nearly 1
        left_out = -torch.expm1(self._log_alpha(t)) / (1 - self.terminal)
        return (left_out * (2 - left_out)).sqrt()

    def alpha_dot(self, t: Tensor) -> Tensor:
        rate = self.beta_min + (self.beta_max - self.beta_min) * t
        return -rate / 2 * self._log_alpha(t).exp() / (1 - self.terminal)

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -(self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2) / 2
