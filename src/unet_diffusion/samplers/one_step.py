"""The lesson's sampler: denoise pure noise in one step."""

from torch import Tensor

from unet_diffusion.diffusion.schedules import Schedule
from unet_diffusion.samplers.base import Sampler, StepDenoiser


class OneStepSampler(Sampler):
    """Returns x0_hat for pure noise. One network evaluation.

    Args:
        noise_scale: standard deviation of the noise, at least 0; 1 as in the lesson.
        clip: see `Sampler`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, noise_scale: float = 1.0, clip: str = "none") -> None:
        super().__init__(steps=1, clip=clip)
        if not noise_scale >= 0:
            raise ValueError(f"noise_scale={noise_scale}: expected at least 0.")
        self.noise_scale = noise_scale

    def initial_noise(self, schedule: Schedule, eps: Tensor) -> Tensor:
        return self.noise_scale * eps

    def step(self, denoiser: StepDenoiser, xt: Tensor, t: float, s: float) -> Tensor:
        x0_hat, _ = denoiser(xt, t)
        return x0_hat
