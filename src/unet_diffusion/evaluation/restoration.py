"""Restoration scores on photographs: a measurement is simulated, and restored by each method."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import InterpolationMode, resize
from tqdm import tqdm

from unet_diffusion.data.sources import read_image
from unet_diffusion.diffusion.noise import seeded_noise
from unet_diffusion.evaluation.photos import image_scores
from unet_diffusion.generation.pipeline import Pipeline
from unet_diffusion.generation.restoration import DEBLUR_STEPS
from unet_diffusion.images import to_float
from unet_diffusion.restoration import Blur, Downsample, Mask, Operator, gaussian_kernel

Task = Literal["inpaint", "enlarge", "deblur"]
Method = Literal["biharmonic", "richardson_lucy", "wiener"]
MISSING = 0.8
"""Fraction of the pixels that are missing in the task inpaint."""
BLUR_NOISE_STD = 2.55
"""Of 255, in the task deblur: 1 %, as in Zhang et al. 2021, sec. 5.1."""
METHODS: dict[Task, tuple[Method, ...]] = {
    "inpaint": ("biharmonic",),
    "enlarge": (),
    "deblur": ("richardson_lucy", "wiener"),
}
"""Other methods of scikit-image (the extra `baselines`), by task."""


@dataclass(frozen=True)
class Measurement:
    """What is known of a photograph."""

    operator: Operator
    y: Tensor  # (1, C, h, w), in the units of [-1, 1]
    noise_std: float  # of y
    interpolated: Tensor  # (1, C, H, W), by interpolation


Restore = Callable[[Measurement], Tensor]
"""Maps a measurement to the restored image (1, C, H, W)."""


def measure(x: Tensor, task: Task, factor: int, blur_std: float, seed: int) -> Measurement:
    """Simulates the measurement of a clean image x (1, C, H, W) in [-1, 1]."""
    if task == "inpaint":
        known = np.random.default_rng(seed).random(x.shape[-2:]) >= MISSING
        mask = Mask(torch.from_numpy(known))
        y = mask.forward(x)
        return Measurement(mask, y, 0.0, mask.initial(y))
    if task == "enlarge":
        downsample = Downsample(factor)
        y = downsample.forward(x)
        larger = resize(y, list(x.shape[-2:]), InterpolationMode.BICUBIC, antialias=True)
        return Measurement(downsample, y, 0.0, larger)
    blur, std = Blur(gaussian_kernel(blur_std)), BLUR_NOISE_STD / 127.5
    y = blur.forward(x) + std * seeded_noise(seed, [0], x.shape[1:])
    return Measurement(blur, y, std, y)


def restoration_scores(
    pipeline: Pipeline,
    files: Sequence[Path],
    task: Task,
    factor: int,
    blur_std: float,
    methods: Sequence[Method],
    seed: int,
) -> tuple[list[dict[str, Any]], list[tuple[str, Tensor]]]:
    """PSNR and SSIM of each image and method, and the seconds that it took.

    Returns:
        The rows; and the centres of up to four images with titles, by method.
    """
    rows, crops = [], []
    steps = DEBLUR_STEPS if task == "deblur" else None
    functions: dict[str, Restore] = {
        "bicubic" if task == "enlarge" else "measured": lambda m: m.interpolated,
        "network": lambda m: pipeline.restore(m.operator, m.y, m.noise_std, steps),
        **{name: _OTHERS[name] for name in methods},
    }
    for i, file in enumerate(tqdm(files, task, unit=" images", leave=False)):
        image = read_image(file)
        sides = [side // factor * factor for side in image.shape[1:]]
        x = to_float(image)[None, :, : sides[0], : sides[1]]
        m = measure(x, task, factor if task == "enlarge" else 1, blur_std, seed + i)
        clean = (x[0] + 1) * 127.5
        crops += [("clean", _centre(clean))] if i < 4 else []
        for name, function in functions.items():
            start = time.perf_counter()
            restored = ((function(m)[0] + 1) * 127.5).clamp(0, 255)
            row = {"image": file.name, "noise_std": round(127.5 * m.noise_std, 2), "method": name}
            row["seconds"] = time.perf_counter() - start
            rows.append(row | image_scores(restored, clean))
            title = f"{name}, {rows[-1]['psnr']:.2f} dB"
            crops += [(title, _centre(restored))] if i < 4 else []
    return rows, crops


def _centre(image: Tensor) -> Tensor:
    top, left = ((side - 160) // 2 for side in image.shape[-2:])
    crop = image[:, max(0, top) :, max(0, left) :][:, :160, :160]
    return crop.clamp(0, 255).round().to(torch.uint8).expand(3, -1, -1)


def _biharmonic(m: Measurement) -> Tensor:
    """Chui and Mhaskar 2010, "MRA Contextual-Recovery Extension of Smooth Functions"."""
    from skimage.restoration import inpaint_biharmonic

    assert isinstance(m.operator, Mask)
    missing = ~m.operator.known.numpy()
    image = inpaint_biharmonic(m.y[0].permute(1, 2, 0).numpy(), missing, channel_axis=-1)
    return torch.from_numpy(image).permute(2, 0, 1)[None]


def _by_channel(m: Measurement, function: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Tensor:
    """Applies a function of (channel in [0, 1], kernel)."""
    assert isinstance(m.operator, Blur)
    kernel = m.operator.kernel.numpy()
    channels = [function(channel.numpy() / 2 + 0.5, kernel) for channel in m.y[0]]
    return torch.from_numpy(np.stack(channels) * 2 - 1)[None]


def _richardson_lucy(m: Measurement) -> Tensor:
    """Richardson 1972, Lucy 1974; ten iterations, more amplify the noise."""
    from skimage.restoration import richardson_lucy

    return _by_channel(m, lambda x, kernel: richardson_lucy(x.clip(0, 1), kernel, num_iter=10))


def _wiener(m: Measurement) -> Tensor:
    """Wiener's filter with a Laplacian prior, of a weight that suits noise of 1 %."""
    from skimage.restoration import wiener

    return _by_channel(m, lambda x, kernel: wiener(x, kernel, balance=0.02))


_OTHERS: dict[str, Restore] = {
    "biharmonic": _biharmonic,
    "richardson_lucy": _richardson_lucy,
    "wiener": _wiener,
}
