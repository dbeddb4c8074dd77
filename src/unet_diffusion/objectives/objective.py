"""What objectives share, and the denoising loss."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from torch import Tensor

from unet_diffusion.diffusion.denoiser import Denoiser


class NoisyBatch(NamedTuple):
    """Images, noise and times of a training step."""

    x0: Tensor  # clean images (B, C, H, W)
    eps: Tensor  # standard Gaussian noise of that shape
    t: Tensor  # times (B,) of the time distribution
    label: Tensor  # class labels (B,), -1 for the null class


class TrainingLoss(NamedTuple):
    """The loss of a training step."""

    value: Tensor  # scalar
    num_images: int  # training images that it depends on


class Objective(ABC):
    """A loss of the denoiser."""

    guidance_scale: float = 1.0  # of images that the objective generates
    needs_average_velocity: bool = False

    @abstractmethod
    def loss(
        self, denoiser: Denoiser, batch: NoisyBatch, ema: Denoiser, progress: float
    ) -> TrainingLoss:
        """The loss of a batch.

        Args:
            denoiser: with the weights that are trained.
            batch: images, noise and times.
            ema: the denoiser with EMA weights, or `denoiser` itself without an EMA.
            progress: fraction of the training that is done, in [0, 1].
        """

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - most have none
        """Restores the result of `state_dict`."""


class DenoisingObjective(Objective):
    """The mean squared error of the model output at xt = add_noise(x0, eps, t)."""

    def loss(
        self, denoiser: Denoiser, batch: NoisyBatch, ema: Denoiser, progress: float
    ) -> TrainingLoss:
        return TrainingLoss(denoiser.loss(*batch), len(batch.x0))
