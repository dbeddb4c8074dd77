"""Denoising images of any size, with a noise level that is given or estimated."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unet_diffusion.diffusion.denoiser import Denoiser
from unet_diffusion.diffusion.schedules import Schedule
from unet_diffusion.errors import UserError


def check_size(file: Path, height: int, width: int) -> None:
    """Checks that an image is not too large for the memory."""
    if height * width > (limit := 1 << 20):
        raise UserError(f"{file}: {width} x {height} pixels, expected at most {limit:,}.")


@torch.inference_mode()
def denoise_image(
    denoiser: Denoiser, xt: Tensor, t: float, additive: bool, image_shape: tuple[int, int, int]
) -> Tensor:
    """Denoises an image xt (1, C, H, W) of any size, in about [-1, 1]; x0_hat is on the CPU.

    A grey network is applied to each colour channel. A network that accepts its training size only
    denoises tiles of that size. `image_shape` is (C, H, W) of the training images; with `additive`
    noise, xt = x0 + sigma(t) / alpha(t) * eps instead of alpha(t) * x0 + sigma(t) * eps.
    """
    channels, height, width = xt.shape[1:]
    multiple = denoiser.net.size_multiple
    unit = (multiple, multiple) if multiple else image_shape[1:]
    padding = (0, -width % unit[1], 0, -height % unit[0])
    x = xt.transpose(0, 1) if image_shape[0] == 1 else xt.expand(-1, 3, -1, -1)
    x = F.pad(x, padding, mode="replicate")
    tile = tuple(x.shape[-2:]) if multiple else unit
    tiles = x.unfold(2, tile[0], tile[0]).unfold(3, tile[1], tile[1]).permute(0, 2, 3, 1, 4, 5)
    batch = tiles.flatten(0, 2).to(next(denoiser.parameters()).device)  # (B * rows * columns, ...)
    time = torch.full((len(batch),), t, device=batch.device)
    scale = denoiser.schedule.alpha(time[:1]) if additive else 1.0
    x0_hat: Tensor = denoiser(scale * batch, time).cpu().reshape(tiles.shape)
    x0_hat = x0_hat.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)[..., :height, :width]
    if image_shape[0] == 1:
        return x0_hat.transpose(0, 1)
    return x0_hat if channels == 3 else x0_hat.mean(dim=1, keepdim=True)


def estimate_noise_std(image: Tensor) -> float:
    """Standard deviation of the white noise in an image (1, C, H, W).

    The median absolute value of the diagonal Haar coefficients at the finest scale, where noise
    dominates: Donoho and Johnstone 1994, "Ideal Spatial Adaptation by Wavelet Shrinkage", sec. 4.
    Noise that was clipped to black or white is underestimated.
    """
    x = image[..., : image.shape[-2] // 2 * 2, : image.shape[-1] // 2 * 2]
    diagonal = x[..., ::2, ::2] - x[..., ::2, 1::2] - x[..., 1::2, ::2] + x[..., 1::2, 1::2]
    gaussian_median = 0.6745
    return float((diagonal / 2).abs().median()) / gaussian_median if diagonal.numel() else 0.0


def noise_level_of(std: float, schedule: Schedule, additive: bool) -> float:
    """The t in [0, 1] at which the noise of an image has this standard deviation."""
    t = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    noise_std = schedule.sigma(t) / (schedule.alpha(t) if additive else 1)
    return float(np.interp(std, noise_std.numpy(), t.numpy()))
