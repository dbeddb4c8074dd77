"""Denoising metrics: how close a guessed image is to the clean one."""

from torchmetrics import MeanSquaredError, Metric, MetricCollection
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

SSIM_WINDOW = 11
"""Side of SSIM's Gaussian window in pixels (Wang et al. 2004); smaller images have no SSIM."""


def denoising_metrics(image_size: tuple[int, int], prefix: str = "") -> MetricCollection:
    """MSE, PSNR and SSIM of guessed against clean images, both in [-1, 1] and not clipped, so that the data range is 2.

    PSNR = 10 log10(2**2 / MSE) in dB, of the MSE over all pixels of all images. SSIM is the mean over images, with mirrored
    edges; images with a side below 11 pixels have none.
    """
    metrics: dict[str, Metric] = {"mse": MeanSquaredError(), "psnr": PeakSignalNoiseRatio(data_range=2.0)}
    if min(image_size) >= SSIM_WINDOW:
        metrics["ssim"] = StructuralSimilarityIndexMeasure(data_range=2.0)
    # the two share no state, and torchmetrics' search for groups that do would cost a pass over the first batch
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)  # type: ignore[arg-type]
