"""Image conversions: uint8 on disk, float in [-1, 1] in the network, PNG and GIF for viewing."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid


def to_float(images: Tensor) -> Tensor:
    """Converts uint8 in [0, 255] to float in [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Converts float in [-1, 1] to uint8 in [0, 255]; clips and rounds."""
    return images.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def image_grid(images: Tensor, columns: int, min_side: int = 64) -> Tensor:
    """Arranges images (N, C, H, W) in [-1, 1] in a uint8 grid (3, H', W').

    Args:
        images: float in [-1, 1].
        columns: images per row.
        min_side: small images are enlarged by an integer factor to about this many pixels.
    """
    factor = max(1, round(min_side / min(images.shape[-2:])))
    enlarged = to_uint8(images).repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)
    grid: Tensor = make_grid(enlarged, nrow=columns, padding=2, pad_value=255)
    return grid


def trajectory_strip(trajectory: Sequence[Tensor], rows: int, max_columns: int = 11) -> Tensor:
    """A grid with one row per image, from noise on the left to the image on the right.

    Args:
        trajectory: images (N, C, H, W) after each step.
        rows: number of images.
        max_columns: number of steps shown, evenly spaced, with the first and the last.
    """
    steps = evenly_spaced(len(trajectory), max_columns)
    by_image = torch.stack([trajectory[i][:rows] for i in steps], dim=1)
    return image_grid(by_image.flatten(0, 1), columns=len(steps))


def evenly_spaced(n: int, limit: int) -> list[int]:
    """Up to `limit` of the indices 0 to n - 1, with the first and the last."""
    count = min(limit, n)
    return [round(i * (n - 1) / max(1, count - 1)) for i in range(count)]


def save_png(image: Tensor, path: Path) -> None:
    """Writes a uint8 image (C, H, W) with C = 1 or 3, creating its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _to_pil(image).save(path)


def save_animation(frames: Sequence[Tensor], path: Path) -> None:
    """Writes uint8 frames (3, H, W) as a looping GIF or WebP that pauses on the last frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = [_to_pil(frame) for frame in frames]
    durations_ms = [80] * len(others) + [1500]
    first.save(path, save_all=True, append_images=others, duration=durations_ms, loop=0)


def _to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy())
