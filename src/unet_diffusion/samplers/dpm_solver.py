"""DPM-Solver++ (2M)."""

import math

from torch import Tensor

from unet_diffusion.samplers.base import Sampler, StepDenoiser


class DPMSolverSampler(Sampler):
    """DPM-Solver++ 2M: a DDIM step with a linear extrapolation of x0_hat. Second order, 1 NFE/step.

    Lu et al. 2022, "DPM-Solver++", alg. 2: x_s = r * xt + (alpha_s - r * alpha_t) * extrapolated
    with r = sigma_s / sigma_t. The paper extrapolates over log(alpha / sigma), which is infinite
    at t = 0 and, without noise floor, at t = 1; this class extrapolates over the angle of
    (alpha, sigma), so that only the first and the last step are of first order.
    """

    def reset(self) -> None:
        self._previous: tuple[Tensor, float] | None = None

    def step(self, denoiser: StepDenoiser, xt: Tensor, t: float, s: float) -> Tensor:
        x0_hat, _ = denoiser(xt, t)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = denoiser.coefficients(t), denoiser.coefficients(s)
        angle_t, angle_s = math.atan2(sigma_t, alpha_t), math.atan2(sigma_s, alpha_s)
        extrapolated = x0_hat
        if self._previous is not None and s > 0:
            x0_previous, angle_previous = self._previous
            ratio = (angle_s - angle_t) / (angle_t - angle_previous)
            extrapolated = x0_hat + ratio / 2 * (x0_hat - x0_previous)
        self._previous = (x0_hat, angle_t)
        r = sigma_s / sigma_t
        return r * xt + (alpha_s - r * alpha_t) * extrapolated
