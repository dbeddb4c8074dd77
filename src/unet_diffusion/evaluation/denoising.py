"""Denoising scores per noise level: the network against no denoising."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanSquaredError, Metric, MetricCollection
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from unet_diffusion.data.dataset import Batch
from unet_diffusion.diffusion.denoiser import Denoiser
from unet_diffusion.diffusion.noise import seeded_noise

_SSIM_WINDOW = 11  # pixels, Wang et al. 2004, "Image Quality Assessment", sec. III.B


def denoising_metrics(image_size: tuple[int, int], prefix: str = "") -> MetricCollection:
    """MSE, PSNR and SSIM of x0_hat against x0, both in [-1, 1] and not clipped (data range 2).

    PSNR = 10 log10(2**2 / MSE) in dB, with the MSE over all pixels of all images. SSIM is the mean
    over the images; it is left out if height or width is smaller than its window of 11 pixels.
    """
    metrics: dict[str, Metric | MetricCollection] = {
        "mse": MeanSquaredError(),
        "psnr": PeakSignalNoiseRatio(data_range=2.0),
    }
    if min(image_size) >= _SSIM_WINDOW:
        metrics["ssim"] = StructuralSimilarityIndexMeasure(data_range=2.0)
    # They share no state, and the search for groups that do costs a pass over the first batch.
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)


@torch.inference_mode()
def x0_hat_by_method(
    denoiser: Denoiser, batch: Batch, t: float, noise_seed: int
) -> dict[str, Tensor]:
    """Denoises images at noise level `t` in (0, 1] without labels, and by two baselines.

    The noise depends on the seed and the index of an image in its split alone, so it is the same at
    every noise level and in every evaluation.

    Returns:
        x0_hat (B, C, H, W) by method: `network`, `noisy` (xt itself) and `rescaled` (xt / alpha,
        clipped to [-1, 1]).
    """
    device = next(denoiser.parameters()).device
    x0 = batch.x0.to(device)
    eps = seeded_noise(noise_seed, batch.indices.tolist(), x0.shape[1:]).to(device)
    times = x0.new_full((len(x0),), t)
    xt = denoiser.schedule.add_noise(x0, eps, times)
    alpha = max(float(denoiser.schedule.alpha(times[0])), 1e-3)  # alpha can be 0 at t = 1
    network = denoiser(xt, times)
    return {"rescaled": (xt / alpha).clamp(-1, 1), "noisy": xt, "network": network}


def denoising_scores(
    denoiser: Denoiser, batches: Iterable[Batch], noise_levels: Sequence[float], noise_seed: int
) -> list[dict[str, Any]]:
    """Scores over all images of `batches`: at each noise level `t` mse, psnr (dB), ssim by method.

    See `x0_hat_by_method` for the methods and arguments.
    """
    metrics: dict[float, dict[str, MetricCollection]] = {t: {} for t in noise_levels}
    for batch in batches:
        size = batch.x0.shape[-2], batch.x0.shape[-1]
        for t, by_method in metrics.items():
            for method, x0_hat in x0_hat_by_method(denoiser, batch, t, noise_seed).items():
                if method not in by_method:
                    by_method[method] = denoising_metrics(size).to(x0_hat.device)
                by_method[method].update(x0_hat, batch.x0.to(x0_hat.device))

    def scores(metric: MetricCollection) -> dict[str, float]:
        return {name: float(value) for name, value in metric.compute().items()}

    return [
        {"t": t, "scores": {method: scores(metric) for method, metric in by_method.items()}}
        for t, by_method in metrics.items()
    ]
