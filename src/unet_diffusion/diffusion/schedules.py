"""Schedules: how much image and how much noise is in a noisy image at each noise level.

xt = alpha(t) * x0 + sigma(t) * eps,    t in [0, 1], 0 = clean, 1 = only noise
"""

from abc import ABC, abstractmethod

from torch import Tensor


class Schedule(ABC):
    """The pair alpha(t), sigma(t)."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """How much of the image is left at level `t`; same shape as `t`."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """How much noise is there at level `t`; same shape as `t`."""

    def mix(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The noisy image xt, (B, C, H, W), from the clean one and standard Gaussian noise of that shape; `t` is (B,)."""
        per_image = t[:, None, None, None]
        return self.alpha(per_image) * x0 + self.sigma(per_image) * eps


class LinearSchedule(Schedule):
    """The lesson's mixing law: alpha = 1 - t, sigma = t.

    It is also the straight path of rectified flow (Liu et al. 2022, "Flow Straight and Fast", eq. 1).
    """

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t
