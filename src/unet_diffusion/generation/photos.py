"""Denoising photographs: noise that was added to stored pixels of any depth."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from unet_diffusion.data.photo_files import Photo
from unet_diffusion.diffusion.denoiser import Denoiser
from unet_diffusion.diffusion.noise import estimate_noise_std
from unet_diffusion.experiment.build import build_time_distribution
from unet_diffusion.experiment.schema import RunConfig
from unet_diffusion.generation.denoising import map_tiles, num_tiles, predict_x0, tiling_of

_WINDOW = 768  # side in pixels of up to 3 x 3 windows, of which the noise is estimated


def to_float(pixels: np.ndarray, photo: Photo) -> Tensor:
    """Colours (C, H, W) in [-1, 1], without alpha, of stored pixels (H, W, C)."""
    low, high = photo.value_range
    colours = pixels[..., : pixels.shape[-1] - photo.has_alpha].astype(np.float32)
    scaled = (colours - low) / max(high - low, 1e-12) * 2 - 1
    return torch.from_numpy(scaled).permute(2, 0, 1)


def from_float(colours: Tensor, photo: Photo) -> np.ndarray:
    """Stored pixels (H, W, C) of colours (C, H, W) in about [-1, 1]; inverse of `to_float`."""
    low, high = photo.value_range
    values = (colours.permute(1, 2, 0).numpy() + 1) / 2 * (high - low) + low
    dtype = photo.pages[0].dtype
    if dtype != np.float32:
        values = np.rint(values.clip(low, high))
    return values.astype(dtype)


def photo_noise_std(photo: Photo) -> float:
    """Estimated standard deviation of the noise, of 255."""
    page = photo.pages[0]
    sizes = [min(side, _WINDOW) for side in page.shape[:2]]
    tops, lefts = (
        np.linspace(0, side - size, 3 if side > 2 * size else 1, dtype=int)
        for side, size in zip(page.shape[:2], sizes, strict=True)
    )
    windows = [page[top : top + sizes[0], left : left + sizes[1]] for top in tops for left in lefts]
    estimates = estimate_noise_std(torch.stack([to_float(each, photo) for each in windows]))
    return 127.5 * float(estimates.median())


def highest_noise_level(config: RunConfig) -> float:
    """The highest t of the training; beyond it, the result of a denoiser is undefined."""
    return float(build_time_distribution(config).icdf(torch.ones(1)))


def is_generator(config: RunConfig) -> bool:
    """Whether a network is trained up to pure noise."""
    return highest_noise_level(config) > 0.99


def count_tiles(photo: Photo, denoiser: Denoiser, image_shape: tuple[int, int, int]) -> int:
    """The number of tiles in which the pages of a photograph are denoised."""
    (height, width), overlap = tiling_of(denoiser, image_shape)
    return sum(
        num_tiles(page.shape[0], height, overlap) * num_tiles(page.shape[1], width, overlap)
        for page in photo.pages
    )


@torch.inference_mode()
def denoise_pages(
    photo: Photo,
    denoiser: Denoiser,
    t: float,
    image_shape: tuple[int, int, int],
    *,
    additive: bool = True,
    strength: float = 1.0,
    on_tile: Callable[[], object] = lambda: None,
) -> list[np.ndarray]:
    """Denoises the pages of a photograph tile by tile, in its own dtype; alpha does not change.

    Args:
        photo: the noisy photograph.
        denoiser: of grey or colour images.
        t: its noise level.
        image_shape: see `denoise_images`.
        additive: see `denoise_images`.
        strength: part of the noise that is removed, in [0, 1].
        on_tile: called after each tile, see `count_tiles`.
    """

    def denoise_tile(tile: Tensor) -> Tensor:
        xt = to_float(tile.permute(1, 2, 0).numpy(), photo)[None]
        x0_hat = predict_x0(denoiser, xt, t, image_shape[0], additive)
        on_tile()
        return torch.lerp(xt, x0_hat, strength)[0]

    pages = []
    for page in photo.pages:
        result = page.copy()
        colours = page.shape[2] - photo.has_alpha
        image = torch.from_numpy(page).permute(2, 0, 1)
        for top, rows in map_tiles(denoise_tile, image, *tiling_of(denoiser, image_shape)):
            result[top : top + rows.shape[-2], :, :colours] = from_float(rows, photo)
        pages.append(result)
    return pages
