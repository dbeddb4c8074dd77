"""Images between their forms: uint8 on disk, float in [-1, 1] in the network, PNG grids for people."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid


def to_float(images: Tensor) -> Tensor:
    """uint8 in [0, 255] to float in [-1, 1], any shape."""
    return images.float().div_(127.5).sub_(1)


def to_uint8(x: Tensor) -> Tensor:
    """Float in [-1, 1] to uint8 in [0, 255], any shape; what lies outside is clipped, the rest rounded to nearest."""
    return x.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)


def grid(x: Tensor, columns: int, smallest_side: int = 64) -> Tensor:
    """Images (N, C, H, W) in [-1, 1] as one uint8 picture (3, H', W'), `columns` a row.

    Small images are enlarged by a whole factor, pixel by pixel, until their shorter side has `smallest_side` pixels.
    """
    factor = max(1, round(smallest_side / min(x.shape[-2:])))
    large = to_uint8(x).repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)
    picture: Tensor = make_grid(large, nrow=columns, padding=2, pad_value=255)
    return picture


def save_png(picture: Tensor, path: Path) -> None:
    """Writes a uint8 picture (3, H, W) as PNG, making its folder where needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.permute(1, 2, 0).cpu().numpy()).save(path)
