"""Metrics of training, validation and denoising: MSE, PSNR, SSIM, and the loss by time."""

import torch
from torch import Tensor
from torchmetrics import MeanSquaredError, Metric, MetricCollection
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

_SSIM_WINDOW = 11  # pixels, Wang et al. 2004, "Image Quality Assessment", sec. III.B
_BINS = 5


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
    """Mean loss in five equal bins of t, over all processes."""

    sums: Tensor
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("sums", "counts"):
            self.add_state(name, torch.zeros(_BINS), dist_reduce_fx="sum")

    def update(self, losses: Tensor, t: Tensor) -> None:
        """Adds losses (B,) at times t (B,)."""
        index = (t * _BINS).long().clamp(max=_BINS - 1)
        self.sums.index_add_(0, index, losses.float())
        self.counts.index_add_(0, index, torch.ones_like(losses, dtype=torch.float32))

    def compute(self) -> dict[str, Tensor]:
        """Mean loss per bin, such as `val/loss_t_0.2-0.4`, without empty bins.

        A single bin would equal the total loss, so it is left out as well.
        """
        used = [i for i in range(_BINS) if self.counts[i] > 0]
        names = {i: f"val/loss_t_{i / _BINS:g}-{(i + 1) / _BINS:g}" for i in used}
        return {names[i]: self.sums[i] / self.counts[i] for i in used} if len(used) > 1 else {}
