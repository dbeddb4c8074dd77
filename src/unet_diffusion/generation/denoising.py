"""Denoising images of any size, in overlapping tiles."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unet_diffusion.diffusion.denoiser import Denoiser

TILE_SIZE = 512
"""Side of the tiles in pixels: larger ones need more memory, smaller ones overlap more."""
OVERLAP = 64
"""Of neighbouring tiles in pixels, at least."""


@torch.inference_mode()
def denoise_images(
    denoiser: Denoiser,
    xt: Tensor,
    t: float,
    image_shape: tuple[int, int, int],
    *,
    additive: bool = False,
    label: Tensor | None = None,
) -> Tensor:
    """Denoises images xt (B, C, H, W) of any size, in about [-1, 1]; x0_hat is on the CPU.

    Args:
        denoiser: of grey or colour images. A grey one is applied to each channel.
        xt: the noisy images.
        t: their noise level.
        image_shape: (C, H, W) of the training images, the size of the tiles if the network accepts
            no other.
        additive: xt = x0 + sigma(t) / alpha(t) * eps, instead of alpha(t) * x0 + sigma(t) * eps.
        label: class labels (B,).
    """

    def denoise_tiles(tiles: Tensor) -> Tensor:
        return predict_x0(denoiser, tiles, t, image_shape[0], additive, label)

    rows = map_tiles(denoise_tiles, xt, *tiling_of(denoiser, image_shape))
    return torch.cat([result for _, result in rows], dim=-2)


def denoise_additive(
    denoiser: Denoiser, image_shape: tuple[int, int, int], images: Tensor, std: float
) -> Tensor:
    """Removes white noise of a standard deviation that was added to images (B, C, H, W)."""
    t = float(denoiser.schedule.time_of_noise(torch.tensor(std)))
    return denoise_images(denoiser, images, t, image_shape, additive=True)


def tiling_of(denoiser: Denoiser, image_shape: tuple[int, int, int]) -> tuple[tuple[int, int], int]:
    """Size (H, W) and overlap of the tiles that a denoiser accepts."""
    multiple = denoiser.net.size_multiple
    if multiple is None:
        return image_shape[1:], min(image_shape[1:]) // 4
    side = -(-TILE_SIZE // multiple) * multiple
    return (side, side), OVERLAP


def predict_x0(
    denoiser: Denoiser,
    xt: Tensor,
    t: float,
    channels: int,
    additive: bool,
    label: Tensor | None = None,
) -> Tensor:
    """x0_hat, on the CPU, of images (B, C, H, W); see `denoise_images`.

    The images of the denoiser have 1 or 3 `channels`.
    """
    height, width = xt.shape[-2:]
    multiple = denoiser.net.size_multiple or 1
    is_grey_of_colour = channels == 1 and xt.shape[1] > 1
    x = xt.flatten(0, 1)[:, None] if is_grey_of_colour else xt.expand(-1, channels, -1, -1)
    x = F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")
    device = next(denoiser.parameters()).device
    x = x.to(device, memory_format=torch.channels_last)
    time = torch.full((len(x),), t, device=device)
    scale = denoiser.schedule.alpha(time[:1]) if additive else 1.0
    label = None if label is None else label.to(device)
    x0_hat: Tensor = denoiser(scale * x, time, label)[..., :height, :width].cpu()
    if is_grey_of_colour:
        return x0_hat.reshape(xt.shape)
    return x0_hat if xt.shape[1] == channels else x0_hat.mean(dim=1, keepdim=True)


def map_tiles(
    function: Callable[[Tensor], Tensor],
    image: Tensor,
    tile_size: tuple[int, int],
    overlap: int,
) -> Iterator[tuple[int, Tensor]]:
    """Applies a function to overlapping tiles of an image and blends the results.

    Only one row of tiles is in memory. Where tiles overlap, their weights have the sum 1 and change
    linearly; they are 0 in the outer quarter of the overlap, where a tile lacks its surroundings.

    Args:
        function: maps a tile (..., h, w) to (..., h, w).
        image: (..., H, W).
        tile_size: (h, w); an image that is smaller in both directions is one tile.
        overlap: of neighbouring tiles in pixels, at least; below half the side of a tile.

    Yields:
        The row of the image, and the result (..., n, W) for the n rows from there.
    """
    height, width = image.shape[-2:]
    tile_size = (min(tile_size[0], height), min(tile_size[1], width))
    tops, row_weights = _spans(height, tile_size[0], overlap)
    lefts, column_weights = _spans(width, tile_size[1], overlap)
    pending: Tensor | None = None  # sum of the rows that the next tiles overlap
    for i, top in enumerate(tops):
        band: Tensor | None = None  # (..., h, W)
        for left, weights in zip(lefts, column_weights, strict=True):
            tile = image[..., top : top + tile_size[0], left : left + tile_size[1]]
            result = function(tile) * weights
            if band is None:
                band = result.new_zeros(*result.shape[:-1], width)
            band[..., left : left + tile_size[1]] += result
        assert band is not None
        band *= row_weights[i][:, None]
        if pending is not None:
            band[..., : pending.shape[-2], :] += pending
        end = tops[i + 1] if i + 1 < len(tops) else height
        yield top, band[..., : end - top, :]
        pending = band[..., end - top :, :].clone()


def num_tiles(length: int, tile: int, overlap: int) -> int:
    """Number of tiles that cover a length; all in pixels."""
    return 1 if tile >= length else -(-(length - overlap) // (tile - overlap))


def _spans(length: int, tile: int, overlap: int) -> tuple[list[int], list[Tensor]]:
    """Starts of evenly spaced tiles, and the weights (tile,) of each."""
    count = num_tiles(length, tile, overlap)
    starts = [round(i) for i in np.linspace(0, length - tile, count)]
    weights = [torch.ones(tile) for _ in starts]
    for i in range(count - 1):
        shared = starts[i] + tile - starts[i + 1]
        ramp = ((torch.arange(shared) + 0.5) / shared * 2 - 0.5).clamp(0, 1)
        weights[i][tile - shared :] *= 1 - ramp
        weights[i + 1][:shared] *= ramp
    return starts, weights
