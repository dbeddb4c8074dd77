"""Loss weightings: a factor for the squared error at each t."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from unet_diffusion.diffusion.predictions import Prediction
from unet_diffusion.diffusion.schedules import Schedule


class LossWeighting(ABC):
    """A weight for the squared error of the model output."""

    @abstractmethod
    def weight(self, schedule: Schedule, prediction: Prediction, t: Tensor) -> Tensor:
        """Non-negative weights at the times `t`, same shape."""


class UniformWeighting(LossWeighting):
    """Weight 1 at every t."""

    def weight(self, schedule: Schedule, prediction: Prediction, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class MinSNRWeighting(LossWeighting):
    """Weight min(SNR, gamma) for the error of x0.

    Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", eq. 7 and 8.
    For other predictions the weight is converted by `Prediction.x0_error_scale`.

    Args:
        gamma: upper bound of the SNR, above 0.

    Raises:
        ValueError: `gamma` is not positive.
    """

    def __init__(self, gamma: float = 5.0) -> None:
        if not gamma > 0:
            raise ValueError(f"gamma={gamma}: expected a number above 0.")
        self.gamma = gamma

    def weight(self, schedule: Schedule, prediction: Prediction, t: Tensor) -> Tensor:
        x0_weight = schedule.snr(t).clamp(max=self.gamma)
        return x0_weight * prediction.x0_error_scale(schedule, t) ** 2
