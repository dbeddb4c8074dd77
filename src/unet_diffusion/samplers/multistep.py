"""Multistep samplers: second order at one evaluation a step, by remembering the guess before."""

import math
from collections.abc import Callable

from torch import Tensor

from unet_diffusion.samplers.base import Asked, Sampler


class DPMSolverPP(Sampler):
    """DPM-Solver++ 2M: the guess, carried on along the line from the one before. One evaluation a step, second order.

    Lu et al. 2022, "DPM-Solver++", alg. 2, in the log of alpha / sigma. Steps that begin or end where that is infinite (pure
    noise, clean image) are first order: they are DDIM's.
    """

    def begin(self) -> None:
        self._before: tuple[Tensor, float] | None = None

    def step(self, ask: Asked, x: Tensor, t: float, s: float, label: Tensor | None, noise: Callable[[], Tensor]) -> Tensor:
        x0_hat, _ = ask(x, t, label)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = ask.at(t), ask.at(s)
        log_ratio, log_ratio_s = (_log(alpha_t) - _log(sigma_t)), (_log(alpha_s) - _log(sigma_s))
        carried = x0_hat
        if self._before is not None and sigma_s > 0:
            x0_before, log_ratio_before = self._before
            carried = x0_hat + (log_ratio_s - log_ratio) / (log_ratio - log_ratio_before) / 2 * (x0_hat - x0_before)
        self._before = (x0_hat, log_ratio)
        return sigma_s / sigma_t * x + (alpha_s - sigma_s / sigma_t * alpha_t) * carried


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf
