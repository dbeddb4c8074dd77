"""A multistep sampler: second order at one evaluation a step, by remembering the guess before."""

import math
from collections.abc import Callable

from torch import Tensor

from unet_diffusion.samplers.base import Asked, Sampler


class DPMSolverPP(Sampler):
    """DPM-Solver++ 2M: a DDIM step with the guess carried on along the line from the one before. One evaluation a step.

    Lu et al. 2022, "DPM-Solver++", alg. 2: x_s = r x + (alpha_s - r alpha_t) carried, where r = sigma_s / sigma_t. The paper
    draws the line over log(alpha / sigma), which is infinite at pure noise and at the clean image; here it is drawn over the
    angle of (alpha, sigma), so that no step but the first and the last is of first order.
    """

    def begin(self) -> None:
        self._before: tuple[Tensor, float] | None = None

    def step(self, ask: Asked, x: Tensor, t: float, s: float, label: Tensor | None, noise: Callable[[], Tensor]) -> Tensor:
        x0_hat, _ = ask(x, t, label)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = ask.at(t), ask.at(s)
        angle, angle_s = math.atan2(sigma_t, alpha_t), math.atan2(sigma_s, alpha_s)
        carried = x0_hat
        if self._before is not None and s > 0:
            x0_before, angle_before = self._before
            carried = x0_hat + (angle_s - angle) / (angle - angle_before) / 2 * (x0_hat - x0_before)
        self._before = (x0_hat, angle)
        return sigma_s / sigma_t * x + (alpha_s - sigma_s / sigma_t * alpha_t) * carried
