"""DDIM and ancestral sampling."""

import math

from torch import Tensor

from unet_diffusion.samplers.base import Sampler, StepDenoiser


class DDIMSampler(Sampler):
    """x_s = alpha_s * x0_hat + sqrt(sigma_s**2 - std**2) * eps_hat + std * noise. First order.

    Song et al. 2021, "Denoising Diffusion Implicit Models", eq. 12 and 16, for any schedule; one
    evaluation per step. With eta = 0 on the linear schedule it is Euler's method on the velocity.

    Args:
        steps: number of steps, 1 to 10,000.
        eta: amount of fresh noise, in [0, 1]. 0 is deterministic, 1 is ancestral sampling.
        time_grid: see `Sampler`.
        clip: see `Sampler`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self, steps: int = 20, eta: float = 0.0, time_grid: str = "uniform", clip: str = "none"
    ) -> None:
        super().__init__(steps, time_grid, clip)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta={eta}: expected a value in [0, 1].")
        self.eta = eta

    def step(self, denoiser: StepDenoiser, xt: Tensor, t: float, s: float) -> Tensor:
        x0_hat, eps_hat = denoiser(xt, t)
        alpha_s, sigma_s = denoiser.coefficients(s)
        if s == 0 or self.eta == 0:
            return alpha_s * x0_hat + sigma_s * eps_hat
        alpha_t, sigma_t = denoiser.coefficients(t)
        # eq. 16: standard deviation of x_s given xt and x0
        ratio = alpha_t * sigma_s / (alpha_s * sigma_t)
        std = self.eta * sigma_s * math.sqrt(max(0.0, 1 - ratio**2))
        eps_scale = math.sqrt(max(0.0, sigma_s**2 - std**2))
        return alpha_s * x0_hat + eps_scale * eps_hat + std * denoiser.noise()
