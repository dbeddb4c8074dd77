"""Heun's method: look at both ends of a step and go the mean way."""

from collections.abc import Callable

from torch import Tensor

from unet_diffusion.samplers.base import Asked, Sampler


class Heun(Sampler):
    """A DDIM step, then again with the mean of the guesses at its two ends. Second order, 2 * steps - 1 evaluations.

    Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", alg. 1, on the path
    dx = x0_hat d alpha + eps_hat d sigma, so that it takes any schedule; on the linear one it is Heun's method on the velocity.
    The last step, into t = 0 where no noise is left to be guessed, is DDIM's.
    """

    def step(self, ask: Asked, x: Tensor, t: float, s: float, label: Tensor | None, noise: Callable[[], Tensor]) -> Tensor:
        x0_hat, eps_hat = ask(x, t, label)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = ask.at(t), ask.at(s)
        straight = x + (alpha_s - alpha_t) * x0_hat + (sigma_s - sigma_t) * eps_hat
        if s == 0:
            return straight
        x0_there, eps_there = ask(straight, s, label)
        return x + (alpha_s - alpha_t) * (x0_hat + x0_there) / 2 + (sigma_s - sigma_t) * (eps_hat + eps_there) / 2
