"""Whether drawn images are copies: how near their nearest training images are, against the same of images never trained on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from unet_diffusion.evaluation.neighbours import Rows, nearest

_NEAR = 0.01


@dataclass(frozen=True)
class Nearness:
    """Distances to the nearest training image, of drawn images and of real ones that were held out."""

    drawn: float
    """Median Euclidean distance."""
    held_out: float
    """The same for real images of the test split."""
    ratio: float
    """drawn / held_out: about 1 for new images as sharp as real ones; below it for blurred ones, and for copies."""
    nearer: float
    """Share of the drawn images that are nearer than all but 1 % of the held-out ones are: 0.01 if none is copied."""

    @classmethod
    def of(cls, drawn: Tensor, held_out: Tensor) -> "Nearness":
        """From the distances (N,) and (M,) of images to their nearest training image."""
        ours, theirs = float(drawn.median()), float(held_out.median())
        near = torch.quantile(held_out, _NEAR)
        return cls(ours, theirs, ours / max(theirs, 1e-12), float((drawn < near).float().mean()))


def nearest_training_image(images: Tensor, training: Rows, mirrored: bool) -> tuple[Tensor, Tensor]:
    """The distance (N,) of each image's pixels in [-1, 1] to those of the nearest training image, and that one's row (N,).

    Args:
        images: uint8 (N, C, H, W).
        training: uint8 (M, C, H, W), which may stay on disk.
        mirrored: the training saw these mirrored, too.
    """
    distances, rows = nearest(images, training, _pixels)
    if mirrored:
        others, other_rows = nearest(images.flip(-1), training, _pixels)
        rows = torch.where(others < distances, other_rows, rows)
        distances = torch.minimum(distances, others)
    return distances, rows


def _pixels(images: Tensor) -> Tensor:
    return images.flatten(1).float() / 127.5 - 1
