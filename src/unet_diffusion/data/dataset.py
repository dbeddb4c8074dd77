"""The images of one split, and their random changes in training."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from unet_diffusion.data.cache import CachedSplit
from unet_diffusion.images import to_float

_CHUNK = 2000  # images


class Batch(NamedTuple):
    """A batch of images."""

    x0: Tensor  # clean images (B, C, H, W), float in [-1, 1]
    label: Tensor  # class labels (B,), int64, -1 for images without a class
    indices: Tensor  # of the images in their split (B,), int64


class ImageDataset(Dataset[Batch]):
    """The images of one split: some rows of a cache entry.

    An image is the centre of a row, which can be a larger tile. Once `start_epoch` was called, it
    is a random crop of it, mirrored at random with `flip`, and its rows and columns are swapped at
    random with `transpose`.
    """

    def __init__(
        self,
        cached: CachedSplit,
        rows: np.ndarray,
        image_size: tuple[int, int],
        flip: bool = False,
        transpose: bool = False,
    ) -> None:
        self.cached = cached
        self.rows = rows
        self.image_size = image_size
        self.flip = flip
        self.transpose = transpose
        self.labels = torch.from_numpy(cached.labels[rows])
        self._on_device: tuple[Tensor, Tensor] | None = None
        stored = np.array(cached.images.shape[1:3], dtype=np.int64)
        self._room = stored - np.array(image_size, dtype=np.int64)  # for the corner of a crop
        self._corners = torch.from_numpy(self._room // 2).expand(len(rows), 2)
        self._flipped: Tensor | None = None  # (N,), bool
        self._transposed: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def to_device(self, device: torch.device) -> None:
        """Copies the uint8 images and labels to a device, from which batches are then taken."""
        images = self.cached.read(self.rows).contiguous()
        self._on_device = images.to(device), self.labels.to(device)

    def uint8(self, indices: slice | np.ndarray) -> Tensor:
        """The centres of the images at these indices as stored, uint8 (n, C, H, W)."""
        (top, left), (height, width) = self._room // 2, self.image_size
        images = self.cached.read(self.rows[indices])
        return images[..., top : top + height, left : left + width]

    def chunks(self) -> Iterator[Tensor]:
        """All images as stored, uint8 (., C, H, W), in chunks that fit into memory."""
        return (self.uint8(slice(i, i + _CHUNK)) for i in range(0, len(self), _CHUNK))

    def start_epoch(self, seed: int, epoch: int) -> None:
        """Selects the changes of the images in an epoch, a function of seed and epoch."""
        rng = np.random.default_rng((seed, epoch))
        if self.flip:
            self._flipped = torch.from_numpy(rng.random(len(self), dtype=np.float32) < 0.5)
        if self.transpose:
            self._transposed = torch.from_numpy(rng.random(len(self), dtype=np.float32) < 0.5)
        if self._room.any():
            self._corners = torch.from_numpy(rng.integers(self._room + 1, size=(len(self), 2)))

    def batch(self, indices: Sequence[int]) -> Batch:
        """One batch with the images at these indices."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        corners = self._corners[index]
        flipped = None if self._flipped is None else self._flipped[index]
        transposed = None if self._transposed is None else self._transposed[index]
        if self._on_device is None:
            images = self.cached.read(self.rows[index.numpy()]).contiguous()
            label = self.labels[index]
        else:
            index = index.to(self._on_device[0].device, non_blocking=True)
            images, label = (each[index] for each in self._on_device)
        if self._room.any():
            images = _crop(images, corners.to(images.device), self.image_size)
        x0 = to_float(images)
        if flipped is not None:
            x0 = torch.where(_mask(flipped, x0), x0.flip(-1), x0)
        if transposed is not None:
            x0 = torch.where(_mask(transposed, x0), x0.transpose(-1, -2), x0)
        return Batch(x0, label, index)

    __getitems__: Any = batch  # what a DataLoader calls


def _crop(images: Tensor, corners: Tensor, size: tuple[int, int]) -> Tensor:
    """Crops of images (B, C, H, W) at corners (B, 2): top, left."""
    rows, columns = (
        corners[:, i, None] + torch.arange(size[i], device=images.device) for i in (0, 1)
    )
    image = torch.arange(len(images), device=images.device)
    by_pixel = images.permute(0, 2, 3, 1)
    crops = by_pixel[image[:, None, None], rows[:, :, None], columns[:, None, :]]
    return crops.permute(0, 3, 1, 2).contiguous()


def _mask(is_changed: Tensor, images: Tensor) -> Tensor:
    return is_changed.to(images.device, non_blocking=True)[:, None, None, None]
