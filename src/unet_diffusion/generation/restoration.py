"""Restoring images of any origin: filling, enlarging and sharpening them."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unet_diffusion.generation.pipeline import Pipeline
from unet_diffusion.restoration import Blur, Downsample, Mask

DEBLUR_STEPS = 8
_BORDER = 16  # pixels beside an image: the operators are periodic, photographs are not


def inpaint(pipeline: Pipeline, images: Tensor, known: Tensor, **options: Any) -> Tensor:
    """Fills the missing pixels of images (B, C, H, W), where the mask `known` (H, W) is False.

    The other pixels do not change. `options` are those of `Pipeline.restore`.
    """
    operator = Mask(known)
    return pipeline.restore(operator, operator.forward(images), **options)


def enlarge(pipeline: Pipeline, images: Tensor, factor: int, **options: Any) -> Tensor:
    """Enlarges images (B, C, h, w), which are taken as bicubically scaled to 1 / factor."""
    return _with_border(
        lambda y, **others: pipeline.restore(Downsample(factor), y, **others),
        images,
        _BORDER,
        factor,
        **options,
    )


def deblur(pipeline: Pipeline, images: Tensor, kernel: Tensor, **options: Any) -> Tensor:
    """Sharpens images (B, C, H, W) that were blurred with a kernel; needs `noise_std` above 0."""
    return _with_border(
        lambda y, **others: pipeline.restore(Blur(kernel), y, **others),
        images,
        2 * max(kernel.shape),
        1,
        **{"steps": DEBLUR_STEPS} | options,
    )


def _with_border(
    restore: Callable[..., Tensor],
    images: Tensor,
    border: int,
    factor: int,
    on_step: Callable[[Tensor], object] = lambda x: None,
    **options: Any,
) -> Tensor:
    """Restores images as parts of periodic ones."""
    height, width = (side * factor for side in images.shape[-2:])

    def inner(x: Tensor) -> Tensor:
        return x[..., :height, :width]

    periodic = append_border(append_border(images, border, -1), border, -2)
    return inner(restore(periodic, on_step=lambda x: on_step(inner(x)), **options))


def append_border(images: Tensor, border: int, dim: int) -> Tensor:
    """Appends pixels, at most as many as there are, that lead from the last ones to the first ones.

    The image is mirrored at both ends, with a linear transition between the two mirror images.
    """
    border = min(border, images.shape[dim])
    after_last = images.flip(dim).narrow(dim, 0, border)
    before_first = images.narrow(dim, 0, border).flip(dim)
    weight = ((torch.arange(border) + 0.5) / border).reshape(-1, *[1] * (-1 - dim))
    return torch.cat([images, torch.lerp(after_last, before_first, weight)], dim)


def kernel_of(image: Tensor) -> Tensor:
    """A blur kernel (h, w) of odd sides, with the sum 1, from an image of it (C, h, w)."""
    kernel = image.float().mean(dim=0)
    kernel = F.pad(kernel, (0, 1 - kernel.shape[1] % 2, 0, 1 - kernel.shape[0] % 2))
    return kernel / torch.clamp(kernel.sum(), min=1e-12)
