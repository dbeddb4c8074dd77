"""Predictions: what the raw network's output means, and how a clean image is read from it."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from unet_diffusion.diffusion.schedules import Schedule


class Prediction(ABC):
    """What the network is asked for; `t` is (B,), images are (B, C, H, W)."""

    @abstractmethod
    def target(self, schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What a perfect network would answer."""

    @abstractmethod
    def x0_hat(self, schedule: Schedule, answer: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The clean image that the network's `answer` at `xt` and `t` stands for."""

    @abstractmethod
    def x0_gain(self, schedule: Schedule, t: Tensor) -> Tensor:
        """How many times larger an error of the answer is in the clean image; same shape as `t`."""

    def check(self, schedule: Schedule) -> None:  # noqa: B027 - most go with every schedule
        """Whether a clean image can be read from the answer at every level of this schedule.

        Raises:
            ValueError: at some level it cannot.
        """


class X0Prediction(Prediction):
    """The network answers with the clean image itself, as in the lesson."""

    def target(self, schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return x0

    def x0_hat(self, schedule: Schedule, answer: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return answer

    def x0_gain(self, schedule: Schedule, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class NoisePrediction(Prediction):
    """The network answers with the noise `eps` (Ho et al. 2020, "Denoising Diffusion Probabilistic Models", eq. 12)."""

    def target(self, schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return eps

    def x0_hat(self, schedule: Schedule, answer: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        t = t[:, None, None, None]
        return (xt - schedule.sigma(t) * answer) / schedule.alpha(t)

    def x0_gain(self, schedule: Schedule, t: Tensor) -> Tensor:
        return schedule.sigma(t) / schedule.alpha(t)

    def check(self, schedule: Schedule) -> None:
        if schedule.alpha(torch.ones(1, dtype=torch.float64)).item() <= 0:
            raise ValueError(
                "prediction=noise needs a schedule that leaves a trace of the image at t = 1, as none can be read from pure "
                "noise: try schedule=ddpm with schedule.zero_terminal=false, or prediction=velocity"
            )


class VelocityPrediction(Prediction):
    """The network answers with the path's velocity: eps - x0 on the linear schedule.

    In general p * x0 + q * eps with the schedule's `velocity_weights`; together with xt = alpha * x0 + sigma * eps that gives
    x0 = (q * xt - sigma * velocity) / (q * alpha - p * sigma).
    """

    def target(self, schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        of_x0, of_eps = schedule.velocity_weights(t[:, None, None, None])
        return of_x0 * x0 + of_eps * eps

    def x0_hat(self, schedule: Schedule, answer: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        t = t[:, None, None, None]
        of_x0, of_eps = schedule.velocity_weights(t)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return (of_eps * xt - sigma * answer) / (of_eps * alpha - of_x0 * sigma)

    def x0_gain(self, schedule: Schedule, t: Tensor) -> Tensor:
        of_x0, of_eps = schedule.velocity_weights(t)
        sigma = schedule.sigma(t)
        return sigma / (of_eps * schedule.alpha(t) - of_x0 * sigma)
