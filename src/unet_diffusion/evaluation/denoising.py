"""Denoising scores per noise level: the network against no denoising and classical denoisers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MetricCollection

from unet_diffusion.data.datamodule import Batch
from unet_diffusion.diffusion.denoiser import Denoiser
from unet_diffusion.diffusion.noise import seeded_noise
from unet_diffusion.evaluation.metrics import denoising_metrics


@torch.inference_mode()
def denoise(
    denoiser: Denoiser,
    batch: Batch,
    t: float,
    noise_seed: int,
    classical: Mapping[str, Callable[[Tensor, float], Tensor]],
) -> dict[str, Tensor]:
    """Denoises the same noisy images with several methods.

    The noise depends on the seed and the index of an image in its split alone, so it is the same at
    every noise level and in every evaluation.

    Args:
        denoiser: in eval mode.
        batch: clean images.
        t: noise level in (0, 1].
        noise_seed: at least 0.
        classical: other denoisers by name, see `classical_denoisers`.

    Returns:
        x0_hat (B, C, H, W) by method: `network`, `noisy` (xt itself), `rescaled` (xt / alpha,
        clipped to [-1, 1]) and the classical denoisers.
    """
    device = next(denoiser.parameters()).device
    x0, label = batch.x0.to(device), batch.label.to(device)
    eps = seeded_noise(noise_seed, batch.indices.tolist(), x0.shape[1:]).to(device)
    times = x0.new_full((len(x0),), t)
    xt = denoiser.schedule.add_noise(x0, eps, times)
    alpha = max(float(denoiser.schedule.alpha(times[0])), 1e-3)  # alpha can be 0 at t = 1
    std = float(denoiser.schedule.sigma(times[0])) / alpha
    rescaled = xt / alpha  # x0 + std * eps
    outputs = {"rescaled": rescaled.clamp(-1, 1), "noisy": xt}
    outputs |= {name: method(rescaled, std) for name, method in classical.items()}
    return outputs | {"network": denoiser(xt, times, label)}


def denoising_scores(
    denoise: Callable[[Batch, float], dict[str, Tensor]],
    batches: Iterable[Batch],
    noise_levels: Sequence[float],
) -> list[dict[str, Any]]:
    """Scores over all images of `batches`: at each noise level `t` mse, psnr (dB), ssim by method.

    `denoise` is the function above with all arguments but the batch and the noise level.
    """
    metrics: dict[float, dict[str, MetricCollection]] = {t: {} for t in noise_levels}
    for batch in batches:
        size = batch.x0.shape[-2], batch.x0.shape[-1]
        for t, by_method in metrics.items():
            for method, x0_hat in denoise(batch, t).items():
                if method not in by_method:
                    by_method[method] = denoising_metrics(size).to(x0_hat.device)
                by_method[method].update(x0_hat, batch.x0.to(x0_hat.device))

    def scores(metric: MetricCollection) -> dict[str, float]:
        return {name: float(value) for name, value in metric.compute().items()}

    return [
        {"t": t, "scores": {method: scores(metric) for method, metric in by_method.items()}}
        for t, by_method in metrics.items()
    ]


def classical_denoisers() -> dict[str, Callable[[Tensor, float], Tensor]]:
    """Denoisers of scikit-image by name, which need no training.

    They map images (B, C, H, W) with Gaussian noise, and its standard deviation, to x0_hat.
    Their parameters were chosen on validation images of Fashion-MNIST at 16 x 16 (docs/scores.md):
    they must smooth more than in proportion to strong noise.
    """
    try:
        from skimage.restoration import denoise_nl_means, denoise_tv_chambolle
    except ModuleNotFoundError as error:
        raise ValueError(
            "classical=true: scikit-image is not installed. Use pip install -e '.[classical]'."
        ) from error

    def nonlocal_means(image: np.ndarray, std: float) -> np.ndarray:
        options = {"patch_size": 5, "patch_distance": 7, "sigma": std, "channel_axis": -1}
        h = std * (0.55 + 0.08 * std)
        return np.asarray(denoise_nl_means(image, h=h, **options))

    def total_variation(image: np.ndarray, std: float) -> np.ndarray:
        weight = 0.5 * std * (1 + std)
        return np.asarray(denoise_tv_chambolle(image, weight=weight, channel_axis=-1))

    def batched(
        method: Callable[[np.ndarray, float], np.ndarray], images: Tensor, std: float
    ) -> Tensor:
        arrays = images.permute(0, 2, 3, 1).double().cpu().numpy()
        # Non-local means drops the channel dimension of grey images.
        outputs = [method(array, std).reshape(array.shape) for array in arrays]
        return torch.from_numpy(np.stack(outputs)).permute(0, 3, 1, 2).to(images).clamp(-1, 1)

    return {each.__name__: partial(batched, each) for each in (nonlocal_means, total_variation)}
