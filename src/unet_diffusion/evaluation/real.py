"""Real images, with which drawn ones are compared: their features, the floor they give, how near they are to each other."""

import zlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from unet_diffusion.data.datamodule import ImageBatches, ImageDataModule
from unet_diffusion.evaluation.classes import class_accuracy
from unet_diffusion.evaluation.features import Judge
from unet_diffusion.evaluation.generation import Closeness, Reference
from unet_diffusion.evaluation.memorisation import nearest_training_image
from unet_diffusion.evaluation.neighbours import nearest

_FLOOR_DRAWS = 5
_READ = 5000


class StoredImages:
    """The images of a split as they are stored, never mirrored: uint8 (N, C, H, W), read from disk where they are asked for."""

    def __init__(self, split: ImageBatches) -> None:
        self._split = split

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, which: slice | Tensor) -> Tensor:
        rows = self._split.rows[which.numpy() if isinstance(which, Tensor) else which]
        return torch.from_numpy(self._split.cached.read(rows)).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class RealImages:
    """The training and test images of a dataset as a judge sees them, for scores of `count` drawn images."""

    training: StoredImages
    features: Tensor
    """Of the training images, (N, D)."""
    reference: Reference
    """The test images."""
    floors: list[Closeness]
    """Of `count` training images each, over draws that share none: what perfect images would score."""
    class_accuracy: float | None
    """Share of the test images that the judge recognises; None where it does not know their classes."""
    mark: str
    """Tells these test images from others of the same dataset."""
    held_out: dict[str, Tensor]
    """Distance of `count` test images to the nearest training image, in `pixels` and in `features`."""

    _last: ClassVar[dict[tuple[object, ...], "RealImages"]] = {}

    @classmethod
    def of(cls, datamodule: ImageDataModule, judge: Judge, count: int) -> "RealImages":
        """For these images, this judge and this count; the last ones are kept, as one evaluation is often followed by more."""
        train, test = datamodule.splits["train"], datamodule.splits["test"]
        key = (_identity(train), _identity(test), datamodule.flip, judge.name, count)
        if key not in cls._last:
            cls._last.clear()
            cls._last[key] = cls._look_at(datamodule, judge, count)
        return cls._last[key]

    @classmethod
    def _look_at(cls, datamodule: ImageDataModule, judge: Judge, count: int) -> "RealImages":
        training, test = (StoredImages(datamodule.splits[name]) for name in ("train", "test"))
        of_train, of_test = (
            torch.cat([judge.features(images[first : first + _READ]) for first in range(0, len(images), _READ)])
            for images in (training, test)
        )
        reference = Reference(of_test)
        shuffled = torch.from_numpy(np.random.default_rng(0).permutation(len(training)))
        draws = [shuffled[i * count : (i + 1) * count] for i in range(min(_FLOOR_DRAWS, len(training) // count))]
        some = torch.from_numpy(np.random.default_rng(0).permutation(len(test))[:count])
        held_out = {
            "pixels": nearest_training_image(test[some], training, datamodule.flip)[0],
            "features": nearest(of_test[some], of_train)[0],
        }
        split = datamodule.splits["test"]
        known = judge.class_names == datamodule.class_names
        probabilities = judge.probabilities(of_test) if known else None
        label = torch.from_numpy(split.cached.labels[split.rows])
        return cls(
            training=training,
            features=of_train,
            reference=reference,
            floors=[reference.closeness(of_train[draw]) for draw in draws],
            class_accuracy=None if probabilities is None else class_accuracy(probabilities, label),
            mark=f"{zlib.crc32(split.rows.tobytes(), zlib.crc32(of_test.numpy().tobytes())):08x}",
            held_out=held_out,
        )


def _identity(split: ImageBatches) -> tuple[object, ...]:
    """Which images a split has: the cache's file, whose name tells its content, and the rows."""
    return getattr(split.cached.images, "filename", id(split.cached.images)), zlib.crc32(split.rows.tobytes())
