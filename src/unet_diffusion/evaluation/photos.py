"""Denoising scores on photographs, by the protocol of the literature on denoising.

White Gaussian noise of a standard deviation in units of 255 is added to 8-bit images, and neither
clipped nor rounded; the result is clipped to [0, 255] (Zhang et al. 2017, "Beyond a Gaussian
Denoiser", sec. IV). The methods other than the network are given the standard deviation, too.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)
from torchvision.transforms.v2.functional import center_crop
from tqdm import tqdm

from unet_diffusion.data.sources import read_image
from unet_diffusion.diffusion.noise import seeded_noise
from unet_diffusion.evaluation.figures import plot_images
from unet_diffusion.generation.denoising import denoise_additive
from unet_diffusion.generation.pipeline import Pipeline

Method = Callable[[Tensor, float], Tensor]
"""Maps an image (C, H, W) in [0, 255] with noise of a standard deviation to a denoised one."""


def photo_scores(
    files: Sequence[Path], noise_std: Sequence[float], methods: Mapping[str, Method], seed: int
) -> list[dict[str, Any]]:
    """PSNR and SSIM of each image, noise level and method, and the seconds that it took."""
    rows = []
    for i, file in enumerate(tqdm(files, "denoising", unit=" images", leave=False)):
        clean = read_image(file).float()
        eps = seeded_noise(seed, [i], tuple(clean.shape))[0]
        for std in noise_std:
            noisy = clean + std * eps
            for name, method in methods.items():
                start = time.perf_counter()
                denoised = method(noisy, std).clamp(0, 255)
                seconds = time.perf_counter() - start
                row = {"image": file.name, "noise_std": std, "method": name, "seconds": seconds}
                rows.append(row | image_scores(denoised, clean))
    return rows


def image_scores(image: Tensor, clean: Tensor) -> dict[str, float]:
    """PSNR in dB and SSIM of an image (C, H, W) in [0, 255], and its size in megapixels."""
    pair = image[None], clean[None]
    ssim = structural_similarity_index_measure(*pair, data_range=255.0)
    assert isinstance(ssim, Tensor)  # without the options that return more
    return {
        "psnr": float(peak_signal_noise_ratio(*pair, data_range=255.0)),
        "ssim": float(ssim),
        "megapixels": clean[0].numel() / 1e6,
    }


def mean_scores(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over the images for each noise level and method, with megapixels per second."""
    groups: dict[tuple[float, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["noise_std"], row["method"]), []).append(row)
    return [
        {
            "noise_std": std,
            "method": name,
            "psnr": mean(row["psnr"] for row in group),
            "ssim": mean(row["ssim"] for row in group),
            "megapixels_per_second": sum(row["megapixels"] for row in group)
            / max(sum(row["seconds"] for row in group), 1e-9),
        }
        for (std, name), group in groups.items()
    ]


def network_method(pipeline: Pipeline) -> Method:
    """The denoiser of a pipeline, which is given the noise level, too."""
    shape = pipeline.run.config.image_shape

    def denoise(noisy: Tensor, std: float) -> Tensor:
        images = noisy[None] / 127.5 - 1
        return (denoise_additive(pipeline.denoiser, shape, images, std / 127.5)[0] + 1) * 127.5

    return denoise


def crops_figure(
    files: Sequence[Path], std: float, methods: Mapping[str, Method], seed: int
) -> Figure:
    """The centres of up to four images: clean, and denoised by each method."""
    images = []
    for i, file in enumerate(files[:4]):
        clean = center_crop(read_image(file), [160, 160]).float()
        noisy = clean + std * seeded_noise(seed, [i], clean.shape)[0]
        shown = {"clean": clean, **{name: method(noisy, std) for name, method in methods.items()}}
        for name, image in shown.items():
            pixels = image.clamp(0, 255).round().to(torch.uint8).expand(3, -1, -1)
            psnr = peak_signal_noise_ratio(image.clamp(0, 255), clean, data_range=255.0)
            images.append((name if name == "clean" else f"{name}, {psnr:.2f} dB", pixels))
    return plot_images(images, columns=len(methods) + 1, width=1.8)


def _wavelet(noisy: Tensor, std: float) -> Tensor:
    """Chang et al. 2000, "Adaptive Wavelet Thresholding" (BayesShrink)."""
    from skimage.restoration import denoise_wavelet

    options = {"sigma": std / 255, "convert2ycbcr": len(noisy) == 3, "rescale_sigma": True}
    return _on_array(noisy, lambda x: denoise_wavelet(x, channel_axis=-1, **options))


def _non_local_means(noisy: Tensor, std: float) -> Tensor:
    """Buades et al. 2005, "A Non-Local Algorithm for Image Denoising"."""
    from skimage.restoration import denoise_nl_means

    options = {"h": 0.8 * std / 255, "sigma": std / 255, "patch_size": 5, "patch_distance": 6}
    return _on_array(noisy, lambda x: denoise_nl_means(x, channel_axis=-1, **options))


def _bm3d(noisy: Tensor, std: float) -> Tensor:
    """Dabov et al. 2007, "Color Image Denoising via Sparse 3D Collaborative Filtering"."""
    import bm3d

    method = bm3d.bm3d_rgb if len(noisy) == 3 else bm3d.bm3d
    return _on_array(noisy, lambda x: method(x.squeeze(), std / 255))


def _on_array(image: Tensor, function: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    """Applies a function of arrays (H, W, C) in [0, 1]."""
    result = function(image.permute(1, 2, 0).numpy() / 255)
    height, width = image.shape[-2:]
    array = np.asarray(result, np.float32).reshape(height, width, -1)
    return torch.from_numpy(array * 255).permute(2, 0, 1)


OTHER_METHODS: dict[str, Method] = {
    "wavelet": _wavelet,
    "non_local_means": _non_local_means,
    "bm3d": _bm3d,
}
"""Methods of scikit-image and bm3d, the extra `baselines`."""
