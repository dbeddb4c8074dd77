"""Predictions: what the network outputs, and how to convert it to x0.

All images are (B, C, H, W) and all times (B,).
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from unet_diffusion.diffusion.schedules import Schedule


class Prediction(ABC):
    """The network predicts p * x0 + q * eps.

    Together with xt = alpha * x0 + sigma * eps, an output v gives
    x0 = (q * xt - sigma * v) / (q * alpha - p * sigma).
    """

    @abstractmethod
    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        """(p, q) at the times `t` of any shape, same shape."""

    def target(self, schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The regression target of the network."""
        p, q = self.coefficients(schedule, t[:, None, None, None])
        return p * x0 + q * eps

    def to_x0(self, schedule: Schedule, model_output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """Converts the model output at (xt, t) to the predicted clean image x0_hat."""
        t = t[:, None, None, None]
        p, q = self.coefficients(schedule, t)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return (q * xt - sigma * model_output) / (q * alpha - p * sigma)

    def x0_error_scale(self, schedule: Schedule, t: Tensor) -> Tensor:
        """Error of x0_hat per unit error of the model output; same shape as `t`."""
        p, q = self.coefficients(schedule, t)
        sigma = schedule.sigma(t)
        return sigma / (q * schedule.alpha(t) - p * sigma)


class X0Prediction(Prediction):
    """The network predicts the clean image, as in the lesson."""

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), torch.zeros_like(t)

    def to_x0(self, schedule: Schedule, model_output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return model_output  # the general formula divides by sigma, which is 0 at t = 0

    def x0_error_scale(self, schedule: Schedule, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class EpsilonPrediction(Prediction):
    """The network predicts the noise (Ho et al. 2020, eq. 12)."""

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.ones_like(t)


class VelocityPrediction(Prediction):
    """The network predicts the velocity of the path: eps - x0 for the linear schedule."""

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        return schedule.velocity_coefficients(t)
