"""Images to be scored: drawn by a run a batch at a time, or read from files that somebody else has drawn."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unet_diffusion.data.cache import fit
from unet_diffusion.data.image_folder import ENDINGS, decode
from unet_diffusion.data.sources import UnreadableImageError
from unet_diffusion.diffusion.noise import image_noise
from unet_diffusion.errors import UserError
from unet_diffusion.evaluation.archives import ImageArchive
from unet_diffusion.images import to_uint8
from unet_diffusion.inference.asked import Generator
from unet_diffusion.inference.draw import draw
from unet_diffusion.inference.team import Team
from unet_diffusion.paths import files_below

_CHUNK = 500  # scored at a time


class Drawings(NamedTuple):
    """Some images."""

    images: Tensor
    """uint8 (B, C, H, W)."""
    label: Tensor | None
    """Class that each was asked to be, (B,), -1 for none; None where none was."""


class DrawingSource(ABC):
    """Where images to be scored come from. They come in batches, so that as many can be scored as one likes."""

    count: int
    """How many there are."""

    @abstractmethod
    def batches(self) -> Iterator[Drawings]:
        """All of the images."""

    @abstractmethod
    def facts(self) -> dict[str, object]:
        """What the images depend on; complete after all batches."""


class FromRun(DrawingSource):
    """Drawn by a run.

    Args:
        generator: draws.
        asked: class that is asked for, see `labels_for`.
        count: how many images.
        seed: of the images, 0 or more.
        batch_size: images at a time; None: what is fast on the device.
        team: the processes that draw them together, each of which must go through all batches; None: this one.

    Raises:
        UserError: there is no such class.
    """

    def __init__(
        self, generator: Generator, asked: object, count: int, seed: int, batch_size: int | None, team: Team | None = None
    ) -> None:
        self.generator = generator
        self.asked = asked
        self.count = count
        self.seed = seed
        self.batch_size = batch_size
        self.team = team
        self.nfe = 0
        self._labels = generator.trained.labels(asked, count)

    def batches(self) -> Iterator[Drawings]:
        trained = self.generator.trained
        for first in range(0, self.count, _CHUNK):
            numbers = range(first, min(first + _CHUNK, self.count))
            label = None if self._labels is None else self._labels[numbers.start : numbers.stop]
            drawn = draw(
                self.generator.guided,
                self.generator.sampler,
                image_noise(self.seed, numbers, trained.run.image_shape),
                label,
                seed=self.seed,
                first=first,
                batch_size=self.batch_size,
                device=trained.device,
                team=self.team,
            )
            self.nfe = drawn.nfe
            yield Drawings(to_uint8(drawn.images), label)

    def help(self) -> None:
        """Draws this process's share of all batches for the others."""
        for _ in self.batches():
            pass

    def facts(self) -> dict[str, object]:
        sampler = self.generator.sampler
        arguments = ", ".join(f"{name}={value}" for name, value in vars(sampler).items() if not name.startswith("_"))
        return {
            "source": f"run {self.generator.trained.run.path.name}",
            "sampler": f"{type(sampler).__name__}({arguments})",
            "nfe": self.nfe,
            "label": "none" if self._labels is None else str(self.asked),
            "guidance": self.generator.guided.weight,
            "seed": self.seed,
            "weights": self.generator.trained.weights,
        }


class FromFiles(DrawingSource):
    """Read from a folder of image files, or from an .npz as sample.py and the ADM suite write it.

    Args:
        path: the folder (all image files below it, in the order of their names) or the archive: uint8 (N, H, W, C) in arr_0,
            class numbers (N,) in arr_1 if there are any.
        image_shape: (C, H, W) to bring the images to.
        count: how many to take, chosen at random but always the same; None for all.

    Raises:
        UserError: there are no such images, or fewer.
    """

    def __init__(self, path: Path, image_shape: tuple[int, int, int], count: int | None) -> None:
        self.path = path
        self.image_shape = image_shape
        self._archive: ImageArchive | None = None
        self._found = ""
        if path.suffix == ".npz" and path.is_file():
            self._archive = ImageArchive(path)
            there = len(self._archive)
        elif path.is_dir():
            self._files = sorted(file for file in files_below(path) if file.suffix.lower() in ENDINGS)
            there = len(self._files)
        else:
            raise UserError(f"images={path} must be a folder of images or an .npz file that is there")
        if there == 0:
            raise UserError(f"images={path} holds no images: name a folder of images ({', '.join(ENDINGS)}) or an .npz file")
        self.count = there if count is None else count
        if self.count > there:
            raise UserError(
                f"images={path} holds {there} images, fewer than num_images={count}: try num_images=null, which takes all"
            )
        self._chosen = np.sort(np.random.default_rng(0).permutation(there)[: self.count])

    def batches(self) -> Iterator[Drawings]:
        labels = None if self._archive is None else self._archive.label
        images = self._from_files() if self._archive is None else self._from_archive(self._archive)
        for numbers in np.split(self._chosen, range(_CHUNK, self.count, _CHUNK)):
            some = torch.cat(list(itertools.islice(images, len(numbers))))
            yield Drawings(some, None if labels is None else labels[torch.from_numpy(numbers)])

    def facts(self) -> dict[str, object]:
        unknown: dict[str, object] = dict.fromkeys(("sampler", "nfe", "label", "guidance", "seed", "weights"))
        return {"source": f"{self.path} ({self._found})"} | unknown

    def _from_archive(self, archive: ImageArchive) -> Iterator[Tensor]:
        for some in archive.read(self._chosen):
            yield from torch.split(self._fitted(some), 1)

    def _from_files(self) -> Iterator[Tensor]:
        try:
            for number in self._chosen:
                yield self._fitted(decode(self._files[number])[None])
        except UnreadableImageError as error:
            raise UserError(f"images: one cannot be read: {error}") from error

    def _fitted(self, images: Tensor) -> Tensor:
        channels, height, width = self.image_shape
        size = f"{images.shape[-2]}x{images.shape[-1]}"
        self._found = size if self._found in ("", size) else "of several sizes"
        return fit(images, (height, width), channels)
