"""What training draws at random; the same, however many processes and batches an optimizer step is spread over."""

from typing import NamedTuple

import torch
from torch import Tensor

from unet_diffusion.checks import fraction
from unet_diffusion.data.datamodule import Batch
from unet_diffusion.diffusion.guidance import NO_CLASS
from unet_diffusion.diffusion.levels import Levels
from unet_diffusion.shares import Share


class Drawn(NamedTuple):
    """What was drawn for the images of one batch."""

    t: Tensor
    """Noise levels, (B,)."""
    eps: Tensor
    """Noise, (B, C, H, W)."""
    label: Tensor
    """Their class numbers, (B,), with some made unknown (Ho and Salimans 2022, alg. 1)."""


class Draws:
    """Draws levels, noise and which classes to hide, for all images of an optimizer step at once, and deals them out.

    These images are spread over processes, and over the batches whose gradients are accumulated. Every process draws for all
    of them from the same stream (torch's, which all have seeded alike) and takes what belongs to its own images. So two
    processes with half the batch each, or two batches of half the size, meet the noise that one whole batch would. Of n
    processes, each draws n times as much as it needs, which is little beside a training step.

    Args:
        levels: which noise levels training draws.
        label_dropout: share of the images whose class is not told, in [0, 1]; each image by itself.

    Raises:
        ValueError: `label_dropout` is no fraction.
    """

    def __init__(self, levels: Levels, label_dropout: float) -> None:
        self.levels = levels
        self.label_dropout = fraction("label_dropout", label_dropout)
        self.share = Share()
        self.batches = 1
        """How many batches an optimizer step accumulates, 1 or more."""
        self.parts: list[tuple[Tensor, ...]] = []
        """What is drawn for each batch of the optimizer step that is being made."""

    def for_batch(self, batch: Batch, batch_idx: int) -> Drawn:
        """What belongs to this process's batch of this number in the epoch; one is to be asked for after the other."""
        part = batch_idx % self.batches
        if part == 0 or len(self.parts) != self.batches:
            self.parts = self._drawn(batch.x0)
        t, eps, *hidden = self.parts[part]
        return Drawn(t, eps, torch.where(hidden[0], NO_CLASS, batch.label) if hidden else batch.label)

    def _drawn(self, x0: Tensor) -> list[tuple[Tensor, ...]]:
        """Levels, noise and (where any are) hidden classes, for each of this process's batches of an optimizer step."""
        count = len(x0) * self.batches * self.share.processes
        drawn = [self.levels.draw(count, device=x0.device)]
        drawn.append(torch.randn(count, *x0.shape[1:], device=x0.device, dtype=x0.dtype))
        if self.label_dropout:
            drawn.append(torch.rand(count, device=x0.device) < self.label_dropout)
        return list(zip(*(torch.split(self.share.of(whole), len(x0)) for whole in drawn), strict=True))
