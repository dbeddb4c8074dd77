"""Images forming out of noise: as a strip, and as an animation."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from unet_diffusion.images import grid

_FRAME_MS = 80
_LAST_MS = 1500


def strip(trajectory: Sequence[Tensor], rows: int, most: int = 11) -> Tensor:
    """A row for each of the first images, from noise on the left to image on the right; uint8 picture (3, H, W).

    Args:
        trajectory: the images (N, C, H, W) at every level.
        rows: how many images.
        most: at most this many moments, evenly chosen, with the first and the last.
    """
    shown = min(most, len(trajectory))
    moments = [round(i * (len(trajectory) - 1) / max(1, shown - 1)) for i in range(shown)]
    by_image = torch.stack([trajectory[i][:rows] for i in moments], dim=1)  # (rows, moments, C, H, W)
    return grid(by_image.flatten(0, 1), columns=len(moments))


def save_animation(pictures: Sequence[Tensor], path: Path) -> None:
    """Writes uint8 pictures (3, H, W) as a GIF or WebP that loops and rests on the last one, making its folder where needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pictures]
    durations = [_FRAME_MS] * (len(frames) - 1) + [_LAST_MS]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)
