"""Denoising metrics: how close a guessed image is to the clean one, and how large the loss is at each noise level."""

import torch
from torch import Tensor
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


class LossByLevel(Metric):
    """Mean loss in equal bins of the noise level; over all processes.

    Args:
        low: lowest level that is used, in [0, 1].
        high: highest level that is used. Where `low` equals `high` there is nothing to compare, and no bin.
        bins: how many bins between 0 and 1; those without a loss are left out.
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, low: float, high: float, bins: int = 5) -> None:
        super().__init__()
        self.bins = bins if low < high else 0
        self.add_state("sums", torch.zeros(self.bins), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(self.bins), dist_reduce_fx="sum")

    def update(self, losses: Tensor, t: Tensor) -> None:
        """Adds the losses (B,) at levels `t` (B,)."""
        if self.bins:
            bin_of = (t * self.bins).long().clamp(max=self.bins - 1)
            self.sums.index_add_(0, bin_of, losses.float())
            self.counts.index_add_(0, bin_of, torch.ones_like(losses, dtype=torch.float32))

    def compute(self) -> dict[str, Tensor]:
        """Mean loss by bin, named by its range, such as `val_by_level/loss_0.2-0.4`."""
        edges = [f"{i / self.bins:g}-{(i + 1) / self.bins:g}" for i in range(self.bins)]
        means = self.sums / self.counts
        return {f"val_by_level/loss_{edge}": means[i] for i, edge in enumerate(edges) if self.counts[i] > 0}
