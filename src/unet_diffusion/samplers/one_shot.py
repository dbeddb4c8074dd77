"""The lesson's sampler: take all the noise out in one step."""

from collections.abc import Callable

from torch import Tensor

from unet_diffusion.checks import number
from unet_diffusion.diffusion.schedules import Schedule
from unet_diffusion.samplers.base import Asked, Sampler


class OneShot(Sampler):
    """Shows the denoiser pure noise once and takes its guess for the image. NFE 1.

    Args:
        noise_scale: standard deviation of the noise it is fed; 1 as in the lesson.
        clipping: of the guess, see `Sampler`.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(self, noise_scale: float = 1.0, clipping: str = "none") -> None:
        super().__init__(steps=1, clipping=clipping)
        self.noise_scale = number("noise_scale", noise_scale, low=0.0)

    def first(self, schedule: Schedule, eps: Tensor) -> Tensor:
        return self.noise_scale * eps

    def step(self, ask: Asked, x: Tensor, t: float, s: float, label: Tensor | None, noise: Callable[[], Tensor]) -> Tensor:
        return ask(x, t, label)[0]
