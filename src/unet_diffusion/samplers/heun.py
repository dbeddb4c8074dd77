"""Heun's method."""

from torch import Tensor

from unet_diffusion.samplers.base import Sampler, StepDenoiser


class HeunSampler(Sampler):
    """An Euler step, then a correction with the mean slope. Second order, 2 * steps - 1 NFE.

    Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", alg. 1,
    written for any schedule as dx = x0_hat d alpha + eps_hat d sigma. The last step is Euler's, as
    eps_hat is undefined at t = 0.
    """

    def step(self, denoiser: StepDenoiser, xt: Tensor, t: float, s: float) -> Tensor:
        x0_t, eps_t = denoiser(xt, t)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.coefficients(t), denoiser.coefficients(s)
        d_alpha, d_sigma = alpha_s - alpha_t, sigma_s - sigma_t
        euler = xt + d_alpha * x0_t + d_sigma * eps_t
        if s == 0:
            return euler
        x0_s, eps_s = denoiser(euler, s)
        return xt + d_alpha * (x0_t + x0_s) / 2 + d_sigma * (eps_t + eps_s) / 2
