"""Weightings: how much the loss at each noise level counts."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from unet_diffusion.checks import number
from unet_diffusion.diffusion.predictions import Prediction
from unet_diffusion.diffusion.schedules import Schedule


class Weighting(ABC):
    """A factor for the squared error of the network's answer."""

    @abstractmethod
    def weight(self, schedule: Schedule, prediction: Prediction, t: Tensor) -> Tensor:
        """The factor at the levels `t`, 0 or more; same shape as `t`."""


class Unweighted(Weighting):
    """Every level counts alike."""

    def weight(self, schedule: Schedule, prediction: Prediction, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class MinSNR(Weighting):
    """The clean image's error counts by the signal-to-noise ratio, up to a limit.

    min(snr, gamma) for the clean image, and the same for other predictions, whose errors are `x0_gain` times as large in the
    clean image (Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", eq. 7 and 8).

    Args:
        gamma: the limit, above 0.

    Raises:
        ValueError: `gamma` is not a number above 0.
    """

    def __init__(self, gamma: float = 5.0) -> None:
        self.gamma = number("gamma", gamma, low=1e-6)

    def weight(self, schedule: Schedule, prediction: Prediction, t: Tensor) -> Tensor:
        return schedule.snr(t).clamp(max=self.gamma) * prediction.x0_gain(schedule, t) ** 2
