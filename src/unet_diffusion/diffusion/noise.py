"""Reproducible noise, a function of a seed and an image index; and how much noise an image has."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor


def seeded_noise(seed: int, indices: Iterable[int], shape: Sequence[int], step: int = 0) -> Tensor:
    """Standard Gaussian noise `(B, *shape)` on the CPU, one image per index.

    The noise of an image depends on `seed`, its index and the sampler `step` alone, all at least 0.
    NumPy's SeedSequence keeps all of them independent.
    """
    images = [
        np.random.default_rng((seed, i, step)).standard_normal(tuple(shape), dtype=np.float32)
        for i in indices
    ]
    return torch.from_numpy(np.array(images, np.float32).reshape(len(images), *shape))


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Spherical interpolation between two noise tensors (B, C, H, W), which keeps their norm.

    Shoemake 1985, "Animating Rotation with Quaternion Curves", applied to flattened images. Weight
    0 returns `a` and weight 1 returns `b`. Parallel images are interpolated linearly.
    """
    cosine = torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)).clamp(-1, 1)
    angle = torch.acos(cosine)[:, None, None, None]
    is_parallel = angle < 1e-4
    angle = angle.masked_fill(is_parallel, 1.0)
    arc = (torch.sin((1 - weight) * angle) * a + torch.sin(weight * angle) * b) / torch.sin(angle)
    return torch.where(is_parallel, torch.lerp(a, b, weight), arc)


def estimate_noise_std(images: Tensor) -> Tensor:
    """Standard deviations (B,) of the white noise in images (B, C, H, W).

    The median absolute value of the diagonal Haar coefficients at the finest scale, where noise
    dominates: Donoho and Johnstone 1994, "Ideal Spatial Adaptation by Wavelet Shrinkage", sec. 4.
    Pixels of exactly -1 or 1 are left out: noise was clipped there.
    """
    x = images[..., : images.shape[-2] // 2 * 2, : images.shape[-1] // 2 * 2]
    batch, channels, height, width = x.shape
    cells = torch.nn.functional.pixel_unshuffle(x, 2)
    cells = cells.reshape(batch, channels, 4, height // 2, width // 2)
    if not cells.numel():
        return images.new_zeros(len(images))
    diagonal = (cells[:, :, 0] - cells[:, :, 1] - cells[:, :, 2] + cells[:, :, 3]) / 2
    is_clipped = (cells.abs() == 1).any(dim=2)
    magnitude = diagonal.abs().masked_fill(is_clipped, math.nan)
    gaussian_median = 0.6745
    median: Tensor = magnitude.flatten(1).nanmedian(dim=1).values
    return median.nan_to_num(0) / gaussian_median
