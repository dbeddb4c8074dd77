"""The samplers: one step from time t to time s < t each."""

import math

from torch import Tensor

from unet_diffusion.samplers.base import Sampler, StepDenoiser


class OneStepSampler(Sampler):
    """The lesson's sampler: returns x0_hat for pure noise. One network evaluation."""

    def __init__(self, clip: str = "none") -> None:
        super().__init__(steps=1, clip=clip)

    def step(self, denoiser: StepDenoiser, xt: Tensor, t: float, s: float) -> Tensor:
        x0_hat, _ = denoiser(xt, t)
        return x0_hat


class DDIMSampler(Sampler):
    """x_s = alpha_s * x0_hat + sqrt(sigma_s**2 - std**2) * eps_hat + std * noise. First order.

    Song et al. 2021, "Denoising Diffusion Implicit Models", eq. 12 and 16, for any schedule; one
    evaluation per step. With eta = 0 on the linear schedule it is Euler's method on the velocity.
    `eta` in [0, 1] is the amount of fresh noise: 0 is deterministic, 1 is ancestral sampling.
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


class AncestralSampler(DDIMSampler):
    """DDPM's ancestral sampling (Ho et al. 2020, alg. 2): DDIM with eta = 1; needs many steps."""

    def __init__(self, steps: int = 100, time_grid: str = "uniform", clip: str = "none") -> None:
        super().__init__(steps, eta=1.0, time_grid=time_grid, clip=clip)


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


class DPMSolverSampler(Sampler):
    """DPM-Solver++ 2M: a DDIM step with a linear extrapolation of x0_hat. Second order, 1 NFE/step.

    Lu et al. 2022, "DPM-Solver++", alg. 2: x_s = r * xt + (alpha_s - r * alpha_t) * extrapolated
    with r = sigma_s / sigma_t. The paper extrapolates over log(alpha / sigma), which is infinite
    at t = 0 and, without noise floor, at t = 1; this class extrapolates over the angle of
    (alpha, sigma), so that only the first and the last step are of first order.
    """

    def step(self, denoiser: StepDenoiser, xt: Tensor, t: float, s: float) -> Tensor:
        x0_hat, _ = denoiser(xt, t)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.coefficients(t), denoiser.coefficients(s)
        angle_t, angle_s = math.atan2(sigma_t, alpha_t), math.atan2(sigma_s, alpha_s)
        extrapolated = x0_hat
        if denoiser.previous is not None and s > 0:
            x0_previous, angle_previous = denoiser.previous
            ratio = (angle_s - angle_t) / (angle_t - angle_previous)
            extrapolated = x0_hat + ratio / 2 * (x0_hat - x0_previous)
        denoiser.previous = (x0_hat, angle_t)
        r = sigma_s / sigma_t
        return r * xt + (alpha_s - r * alpha_t) * extrapolated
