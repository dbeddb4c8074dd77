"""Metrics of training, validation and denoising: MSE, PSNR, SSIM, and the loss by time."""

import torch
from torch import Tensor
from torchmetrics import MeanSquaredError, Metric, MetricCollection
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

_SSIM_WINDOW = 11  # pixels, Wang et al. 2004, "Image Quality Assessment", sec. III.B


def denoising_metrics(image_size: tuple[int, int], prefix: str = "") -> MetricCollection:
    """MSE, PSNR and SSIM of x0_hat against x0, both in [-1, 1] and not clipped (data range 2).

    PSNR = 10 log10(2**2 / MSE) in dB, with the MSE over all pixels of all images. SSIM is the mean
    over the images; it is left out if a side is smaller than its window of 11 pixels.

    Args:
        image_size: (height, width) in pixels.
        prefix: of the names, such as `val/`.
    """
    metrics: dict[str, Metric | MetricCollection] = {
        "mse": MeanSquaredError(),
        "psnr": PeakSignalNoiseRatio(data_range=2.0),
    }
    if min(image_size) >= _SSIM_WINDOW:
        metrics["ssim"] = StructuralSimilarityIndexMeasure(data_range=2.0)
    # They share no state, and the search for groups that do costs a pass over the first batch.
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)


class LossByTime(Metric):
    """Mean loss in equal bins of t, over all processes.

    Args:
        bins: number of bins between t = 0 and t = 1.
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, bins: int = 5) -> None:
        super().__init__()
        self.bins = bins
        self.add_state("sums", torch.zeros(bins), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(bins), dist_reduce_fx="sum")

    def update(self, losses: Tensor, t: Tensor) -> None:
        """Adds losses (B,) at times t (B,)."""
        index = (t * self.bins).long().clamp(max=self.bins - 1)
        self.sums.index_add_(0, index, losses.float())
        self.counts.index_add_(0, index, torch.ones_like(losses, dtype=torch.float32))

    def compute(self) -> dict[str, Tensor]:
        """Mean loss per bin, such as `val/loss_t_0.2-0.4`.

        Without empty bins. A single bin would equal the total loss, so it is left out as well.
        """
        used = [i for i in range(self.bins) if self.counts[i] > 0]
        if len(used) < 2:
            return {}
        return {
            f"val/loss_t_{i / self.bins:g}-{(i + 1) / self.bins:g}": self.sums[i] / self.counts[i]
            for i in used
        }
