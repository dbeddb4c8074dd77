"""The lesson's sampler: take all the noise out in one step."""

from torch import Tensor

from unet_diffusion.checks import number
from unet_diffusion.samplers.base import DenoiserLike, Sampler


class OneShot(Sampler):
    """Shows the denoiser pure noise once and takes its guess for the image. NFE 1.

    Args:
        noise_scale: standard deviation of the noise it is fed; 1 as in the lesson.

    Raises:
        ValueError: `noise_scale` is not a number of 0 or more.
    """

    def __init__(self, noise_scale: float = 1.0) -> None:
        self.noise_scale = number("noise_scale", noise_scale, low=0.0)

    def levels(self) -> list[float]:
        return [1.0, 0.0]

    def step(self, denoiser: DenoiserLike, xt: Tensor, t: Tensor, s: Tensor, label: Tensor | None) -> Tensor:
        return denoiser(xt, t, label)
