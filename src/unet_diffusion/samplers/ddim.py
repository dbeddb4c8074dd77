"""DDIM: guess the clean image and the noise, and mix them again at the next level."""

import math
from collections.abc import Callable

from torch import Tensor

from unet_diffusion.checks import fraction
from unet_diffusion.samplers.base import Asked, Sampler


class DDIM(Sampler):
    """x_s = alpha_s * x0_hat + sqrt(sigma_s**2 - fresh**2) * eps_hat + fresh * new noise. One evaluation a step, first order.

    Song et al. 2021, "Denoising Diffusion Implicit Models", eq. 12 and 16, written with sigma for any schedule; finite at t = 1
    and t = 0. On the linear schedule with eta 0 it is Euler's method on the velocity.

    Args:
        steps: 1 or more.
        eta: share of fresh noise, in [0, 1]. 0: none. 1: ancestral sampling, as much as the noising process itself would
            have brought between the two levels.
        grid: how the levels lie, see `Sampler`.
        clipping: of every guess x0_hat, see `Sampler`.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(self, steps: int = 20, eta: float = 0.0, grid: str = "uniform", clipping: str = "none") -> None:
        super().__init__(steps, grid, clipping)
        self.eta = fraction("eta", eta)

    def step(self, ask: Asked, x: Tensor, t: float, s: float, label: Tensor | None, noise: Callable[[], Tensor]) -> Tensor:
        x0_hat, eps_hat = ask(x, t, label)
        alpha_s, sigma_s = ask.at(s)
        if s == 0 or self.eta == 0:
            return alpha_s * x0_hat + sigma_s * eps_hat
        alpha_t, sigma_t = ask.at(t)
        # eq. 16: the spread of x_s that is left when both xt and x0 are known
        fresh = self.eta * sigma_s * math.sqrt(max(0.0, 1 - (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2))
        kept = math.sqrt(max(0.0, sigma_s**2 - fresh**2))
        return alpha_s * x0_hat + kept * eps_hat + fresh * noise()
