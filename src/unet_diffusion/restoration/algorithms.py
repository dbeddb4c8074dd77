"""Plug-and-play restoration: alternately fit the measurement, and denoise.

A denoiser knows what images look like, whatever has happened to them: the same weights fill,
enlarge and sharpen (Venkatakrishnan et al. 2013, "Plug-and-Play Priors for Model Based
Reconstruction").
"""

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from unet_diffusion.diffusion.schedules import Schedule
from unet_diffusion.restoration.operators import Operator

FIRST_STD = 49 / 127.5
LAST_STD = 2 / 127.5
"""Noise levels of `dpir` in images in [-1, 1]: that of Zhang et al., and one that is invisible."""


def dpir(
    denoise: Callable[[Tensor, float], Tensor],
    operator: Operator,
    y: Tensor,
    noise_std: float = 0.0,
    steps: int = 24,
    *,
    balance: float = 0.23,
    on_step: Callable[[Tensor], object] = lambda x: None,
) -> Tensor:
    """Half-quadratic splitting, for denoisers of little noise, such as those of photographs.

    Zhang et al. 2021, "Plug-and-Play Image Restoration with Deep Denoiser Prior", eq. 6: at
    decreasing noise levels std_k::

        x = argmin |A x - y|^2 + balance * (noise_std / std_k)^2 * |x - z|^2
        z = denoise(x, std_k).

    Args:
        denoise: removes white noise of a standard deviation from images in about [-1, 1].
        operator: A.
        y: the measured images (B, C, h, w), in the units of [-1, 1].
        noise_std: of the noise in y, at least 0; the result reproduces y without noise.
        steps: number of noise levels, at least 1.
        balance: weight of the denoiser, above 0.
        on_step: called with each z.

    Returns:
        The restored images (B, C, H, W).
    """
    last = max(noise_std, LAST_STD)
    z = operator.initial(y)
    for std in np.geomspace(max(FIRST_STD, last), last, steps).tolist():
        x = operator.proximal(z, y, balance * (noise_std / std) ** 2)
        z = denoise(x, std)
        on_step(z)
    return operator.proximal(z, y, 0.0) if noise_std == 0 else z


def pnp_flow(
    predict_x0: Callable[[Tensor, Tensor], Tensor],
    schedule: Schedule,
    operator: Operator,
    y: Tensor,
    noise_std: float = 0.0,
    steps: int = 100,
    *,
    fresh_noise: Callable[[], Tensor] | None = None,
    on_step: Callable[[Tensor], object] = lambda x: None,
) -> Tensor:
    """Restoration with a generator, which is trained up to t = 1: other noise, another result.

    Martin et al. 2025, "PnP-Flow", alg. 1, with the proximal step instead of the gradient: from
    t = 1 to 0::

        x0_hat = predict_x0(add_noise(x, fresh noise, t), t)
        x = argmin |A x - y|^2 + (noise_std * alpha / sigma)^2 * |x - x0_hat|^2.

    Args:
        predict_x0: maps noisy images (B, C, H, W) at times (B,) to x0_hat, such as a Denoiser.
        schedule: that of the denoiser.
        operator: A.
        y: the measured images (B, C, h, w), in the units of [-1, 1].
        noise_std: of the noise in y, at least 0; the result reproduces y without noise.
        steps: number of times, at least 1.
        fresh_noise: returns standard Gaussian noise like x at each call; None: torch.randn_like.
        on_step: called with each x.

    Returns:
        The restored images (B, C, H, W).
    """
    x = operator.initial(y)
    fresh_noise = fresh_noise or functools.partial(torch.randn_like, x)
    for t in torch.linspace(1, 1 / steps, steps):
        times = t.to(x).expand(len(x))
        x0_hat = predict_x0(schedule.add_noise(x, fresh_noise(), times), times)
        weight = float(noise_std * schedule.alpha(t) / schedule.sigma(t)) ** 2
        x = operator.proximal(x0_hat, y, weight)
        on_step(x)
    return x
