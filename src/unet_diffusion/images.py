"""Image conversions: uint8 on disk, float in [-1, 1] in the network, PNG and GIF for viewing."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import make_grid


def to_float(images: Tensor) -> Tensor:
    """Converts uint8 in [0, 255] to float in [-1, 1]."""
    return images.float().div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Converts float in [-1, 1] to uint8 in [0, 255]; clips and rounds."""
    return images.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def to_pil(images: Tensor) -> list[Image.Image]:
    """Converts float images (N, C, H, W) in [-1, 1], C = 1 or 3, to Pillow images."""
    return [to_pil_image(image) for image in to_uint8(images)]


def image_grid(images: Tensor, columns: int, min_side: int = 64) -> Tensor:
    """Arranges float images (N, C, H, W) in [-1, 1] in a uint8 grid (3, H', W').

    Smaller images are enlarged by an integer factor to about `min_side` pixels, as long as the
    longer side is at most 2048.
    """
    shorter, longer = sorted(images.shape[-2:])
    factor = max(1, min(round(min_side / shorter), 2048 // longer))
    enlarged = to_uint8(images).repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)
    grid: Tensor = make_grid(enlarged, nrow=columns, padding=2, pad_value=255)
    return grid


def trajectory_strip(trajectory: Sequence[Tensor], rows: int, max_columns: int = 11) -> Tensor:
    """A grid with one row per image, from noise on the left to the image on the right.

    Shows the first `rows` of the images (N, C, H, W) after up to `max_columns` of the steps.
    """
    steps = evenly_spaced(len(trajectory), max_columns)
    by_image = torch.stack([trajectory[i][:rows] for i in steps], dim=1)
    return image_grid(by_image.flatten(0, 1), columns=len(steps))


def evenly_spaced(n: int, limit: int) -> list[int]:
    """Up to `limit` of the indices 0 to n - 1, with the first and the last."""
    return [int(index) for index in torch.linspace(0, n - 1, min(limit, n)).round()]


def save_png(image: Tensor, path: Path) -> None:
    """Writes a uint8 image (C, H, W) with C = 1 or 3, creating its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    to_pil_image(image).save(path)


def save_animation(frames: Sequence[Tensor], path: Path) -> None:
    """Writes uint8 frames (3, H, W) as a looping GIF or WebP that pauses on the last frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = [to_pil_image(frame) for frame in frames]
    durations_ms = [80] * len(others) + [1500]
    first.save(path, save_all=True, append_images=others, duration=durations_ms, loop=0)
