"""Prediction types: what the network outputs, and how to convert it to x0.

All images are (B, C, H, W) and all times (B,).
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from unet_diffusion.diffusion.schedules import Schedule


class Prediction(ABC):
    """The quantity that the network predicts."""

    @abstractmethod
    def target(self, schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The regression target of the network."""

    @abstractmethod
    def to_x0(self, schedule: Schedule, model_output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """Converts the model output at (xt, t) to the predicted clean image x0_hat."""

    @abstractmethod
    def x0_error_scale(self, schedule: Schedule, t: Tensor) -> Tensor:
        """Error of x0_hat per unit error of the model output; same shape as `t`."""

    def check_schedule(self, schedule: Schedule) -> None:  # noqa: B027 - no-op by default
        """Checks that `to_x0` is defined for all t of the schedule.

        Raises:
            ValueError: it is not.
        """


class X0Prediction(Prediction):
    """The network predicts the clean image, as in the lesson."""

    def target(self, schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return x0

    def to_x0(self, schedule: Schedule, model_output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return model_output

    def x0_error_scale(self, schedule: Schedule, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class EpsilonPrediction(Prediction):
    """The network predicts the noise (Ho et al. 2020, eq. 12)."""

    def target(self, schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return eps

    def to_x0(self, schedule: Schedule, model_output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        t = t[:, None, None, None]
        return (xt - schedule.sigma(t) * model_output) / schedule.alpha(t)

    def x0_error_scale(self, schedule: Schedule, t: Tensor) -> Tensor:
        return schedule.sigma(t) / schedule.alpha(t)

    def check_schedule(self, schedule: Schedule) -> None:
        if schedule.alpha(torch.ones(1, dtype=torch.float64)).item() <= 0:
            raise ValueError(
                "prediction=epsilon: x0 is undefined at t = 1, because this schedule reaches "
                "alpha = 0. Use schedule=ddpm with schedule.zero_terminal_snr=false, or "
                "prediction=velocity."
            )


class VelocityPrediction(Prediction):
    """The network predicts the velocity of the path: eps - x0 for the linear schedule.

    In general v = p * x0 + q * eps with the schedule's `velocity_coefficients`. Together with
    xt = alpha * x0 + sigma * eps this gives x0 = (q * xt - sigma * v) / (q * alpha - p * sigma).
    """

    def target(self, schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        p, q = schedule.velocity_coefficients(t[:, None, None, None])
        return p * x0 + q * eps

    def to_x0(self, schedule: Schedule, model_output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        t = t[:, None, None, None]
        p, q = schedule.velocity_coefficients(t)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return (q * xt - sigma * model_output) / (q * alpha - p * sigma)

    def x0_error_scale(self, schedule: Schedule, t: Tensor) -> Tensor:
        p, q = schedule.velocity_coefficients(t)
        sigma = schedule.sigma(t)
        return sigma / (q * schedule.alpha(t) - p * sigma)
