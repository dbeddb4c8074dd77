"""Sources say which images a dataset has. They read them as they are; resizing and caching happen elsewhere."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from unet_diffusion.diffusion.guidance import NO_CLASS

SplitName = Literal["train", "test"]
NO_LABEL = NO_CLASS
"""The label of an image whose class is not known."""


class UnreadableImageError(Exception):
    """An image file that cannot be decoded; says which and why."""


class RawSplit(ABC):
    """The images of one split before resizing."""

    labels: np.ndarray
    """(N,) int64; `NO_LABEL` where there is none."""

    class_names: tuple[str, ...]
    """Name of class 0, 1, ...; empty where there are no classes."""

    chunk_size: int
    """How many images to ask for at once."""

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, start: int, stop: int) -> Tensor:
        """Images `start` to `stop` (exclusive), uint8 (n, C, H, W) with C = 1 or 3.

        Raises:
            UnreadableImageError: one of them cannot be decoded.
        """


class ArraySplit(RawSplit):
    """Images that are one array already.

    Args:
        images: uint8 (N, H, W) or (N, H, W, C).
        labels: (N,) whole numbers.
        class_names: name of each class.
    """

    chunk_size = 1000

    def __init__(self, images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> None:
        self.images = images if images.ndim == 4 else images[..., None]
        self.labels = labels.astype(np.int64)
        self.class_names = class_names

    def read(self, start: int, stop: int) -> Tensor:
        return torch.from_numpy(self.images[start:stop].copy()).permute(0, 3, 1, 2)


class ImageSource(ABC):
    """A dataset as it is found: some have a test split of their own, others only training images."""

    name: str
    """For the cache's file names: letters, digits, `-` and `_`."""

    @abstractmethod
    def fingerprint(self, split: SplitName, root: Path | None) -> str | None:
        """A text that changes when the split's images change; None where the dataset has no such split.

        Raises:
            UserError: the dataset is not there; says how to get it.
        """

    @abstractmethod
    def open(self, split: SplitName, root: Path | None) -> RawSplit:
        """The split's images and labels.

        Raises:
            UserError: they are not there or damaged.
        """


def file_stamp(path: Path) -> str:
    """Size and time of change of a file, as a text."""
    stat = path.stat()
    return f"{stat.st_size}-{stat.st_mtime_ns}"
