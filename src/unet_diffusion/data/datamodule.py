"""The data module: three splits, and batches by one indexing operation into the image cache."""

import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveInt, validate_call
from torch.utils.data import DataLoader, DistributedSampler

from unet_diffusion.data.cache import CachedSplit, Tiling, cached_split
from unet_diffusion.data.clusters import cluster_labels
from unet_diffusion.data.dataset import Batch, ImageDataset
from unet_diffusion.data.sources import ImageSource
from unet_diffusion.errors import STRICT, UserError
from unet_diffusion.images import to_float

Side = Annotated[int, Field(ge=1, le=2048)]
SplitFraction = Annotated[float, Field(gt=0, lt=1)]


class TrainingSampler(DistributedSampler[Batch]):
    """Shuffled indices as a function of seed and epoch; can start in the middle of an epoch.

    An epoch has a multiple of `step_size`, the images per process and optimizer step.
    """

    def __init__(
        self, dataset: ImageDataset, num_replicas: int, rank: int, seed: int, step_size: int
    ) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=True, seed=seed, drop_last=True)
        self.images = dataset
        self.num_samples = self.num_samples // step_size * step_size
        self.total_size = self.num_samples * num_replicas
        self.skip = 0  # indices to skip in the next pass, after a resume

    def __iter__(self) -> Iterator[Any]:
        self.images.start_epoch(self.seed, self.epoch)
        skip, self.skip = self.skip, 0
        return itertools.islice(super().__iter__(), skip, None)


class ImageDataModule(L.LightningDataModule):
    """Resized images of any source in disjoint training, validation and test splits.

    The test split is the dataset's own, or is cut from the training images if there is none. The
    validation split is cut from the training images. Both cuts depend on `split_seed`, and for
    folders on the content of each image. The position within the training epoch is part of the
    checkpoint. See conf/data/base.yaml for the arguments.
    """

    @validate_call(config=STRICT)
    def __init__(
        self,
        source: ImageSource,
        image_size: Side | Annotated[list[Side], Field(min_length=2, max_length=2)],
        channels: Literal[1, 3],
        batch_size: PositiveInt,
        cache_dir: str,
        root: str | None = None,
        flip: bool = False,
        val_fraction: SplitFraction = 0.1,
        test_fraction: SplitFraction = 0.1,
        split_seed: NonNegativeInt = 0,
        seed: NonNegativeInt = 0,
        num_clusters: Annotated[int, Field(ge=2)] | None = None,
        tile_size: Side | None = None,
        scale: Annotated[float, Field(gt=0, le=1)] = 0.5,
        max_side: PositiveInt = 1280,
        transpose: bool = False,
    ) -> None:
        super().__init__()
        self.source = source
        height, width = [image_size] * 2 if isinstance(image_size, int) else image_size
        self.channels = channels
        self.image_size = (height, width)
        self.image_shape = (channels, height, width)
        if tile_size is not None and tile_size < max(height, width):
            raise ValueError(f"tile_size={tile_size}: expected at least image_size={image_size}.")
        if transpose and height != width:
            raise ValueError(f"transpose=true: image_size={image_size} is not square.")
        self.tile_size = tile_size
        self.tiling = Tiling(scale, max_side)
        self.transpose = transpose
        self.batch_size = batch_size
        self.cache_dir = Path(cache_dir).expanduser()
        self.root = None if root is None else Path(root).expanduser()
        self.flip = flip
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.split_seed = split_seed
        self.seed = seed
        self.num_clusters = num_clusters
        self.class_names: tuple[str, ...] = ()
        self.splits: dict[str, ImageDataset] = {}
        self._batches_to_skip = 0

    def setup(self, stage: str | None = None) -> None:
        """Opens the image cache and cuts the splits; the training split needs a full batch."""
        if self.splits:
            return
        tiling = None if self.tile_size is None else self.tiling
        stored_size = self.image_size if self.tile_size is None else (self.tile_size,) * 2
        target = self.root, stored_size, self.channels, self.cache_dir, tiling
        train = cached_split(self.source, "train", *target)
        assert train is not None  # every source has training images
        test = cached_split(self.source, "test", *target)
        positions = _positions(train, self.split_seed, by_content=self.source.can_change)
        rows = np.arange(len(positions))
        test_rows = np.arange(0 if test is None else len(test.labels))
        cut = 0.0
        if test is None:
            cut = self.test_fraction
            is_test = _first(positions, cut)
            test_rows, rows = rows[is_test], rows[~is_test]
        is_val = _first(positions[rows], cut + self.val_fraction * (1 - cut))
        val_rows, train_rows = rows[is_val], rows[~is_val]
        if len(train_rows) < self.batch_size:
            raise UserError(
                f"data.batch_size={self.batch_size}: the training split has {len(train_rows)} "
                f"images (validation {len(val_rows)}, test {len(test_rows)}). "
                f"Use data.batch_size={max(1, len(train_rows))} or less, or more images."
            )
        self.class_names = train.class_names
        self.splits = {
            "train": ImageDataset(train, train_rows, self.image_size, self.flip, self.transpose),
            "val": ImageDataset(train, val_rows, self.image_size),
            "test": ImageDataset(test or train, test_rows, self.image_size),
        }
        if self.num_clusters is not None:
            self._replace_classes(self.num_clusters)

    def fingerprints(self) -> dict[str, str]:
        """Number of images and a checksum of their contents, by split; the order has no effect."""
        keys = {name: np.sort(split.cached.keys[split.rows]) for name, split in self.splits.items()}
        return {name: f"{len(k)}-{zlib.crc32(k.tobytes()):08x}" for name, k in keys.items()}

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches in an order that depends on seed and epoch alone, disjoint over processes."""
        world_size, rank = self._world()
        accumulate = self.trainer.accumulate_grad_batches if self.trainer else 1
        step_size = self.batch_size * accumulate
        sampler = TrainingSampler(self.splits["train"], world_size, rank, self.seed, step_size)
        if sampler.num_samples == 0:
            count = f"{step_size * world_size} images, there are {len(self.splits['train'])}"
            raise UserError(f"data.batch_size={self.batch_size}: a step needs {count}.")
        sampler.skip, self._batches_to_skip = self._batches_to_skip * self.batch_size, 0
        return _loader(self.splits["train"], batch_size=self.batch_size, sampler=sampler)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._evaluation_loader("test")

    def state_dict(self) -> dict[str, int]:
        """Position within the training epoch, for the checkpoint."""
        assert self.trainer is not None
        done = self.trainer.fit_loop.batch_idx + 1
        return {"batches_done": done % int(self.trainer.num_training_batches)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._batches_to_skip = state_dict["batches_done"]

    def _replace_classes(self, num_clusters: int) -> None:
        """Replaces the class labels of all splits by clusters of the training images."""
        if num_clusters > (limit := len(self.splits["train"]) // 10):
            raise UserError(
                f"data.num_clusters={num_clusters}: at most {limit}, a tenth of the images."
            )
        splits = self.splits.values()
        chunks = itertools.chain.from_iterable(split.chunks() for split in splits)
        points = torch.cat([F.adaptive_avg_pool2d(to_float(each), 8).flatten(1) for each in chunks])
        generator = torch.Generator().manual_seed(0)
        points += 1e-3 * torch.randn(points.shape, generator=generator)  # for identical images
        is_training = torch.arange(len(points)) < len(self.splits["train"])
        # Neighbours are similar: in random order, the first few clusters represent all images.
        order = torch.randperm(num_clusters, generator=generator)
        labels = order[cluster_labels(points, is_training, num_clusters)]
        parts = torch.split(labels, [len(split) for split in splits])
        for split, part in zip(splits, parts, strict=True):
            split.labels = part
        self.class_names = tuple(f"cluster-{i}" for i in range(num_clusters))

    def _evaluation_loader(self, split: str) -> DataLoader[Batch]:
        """Every image once over all processes; DistributedSampler would repeat some.

        All processes get the same number of batches, of which the last can be empty.
        """
        dataset = self.splits[split]
        world_size, rank = self._world()
        own = range(rank, len(dataset), world_size)
        starts = range(0, -(-len(dataset) // world_size), self.batch_size)
        batches = [list(own[start : start + self.batch_size]) for start in starts]
        return _loader(dataset, batch_sampler=batches)

    def _world(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)


def _positions(cached: CachedSplit, seed: int, by_content: bool) -> np.ndarray:
    """Random positions (N,) of the images in [0, 1); the first are test images, then validation.

    By content, an image that is added, removed or renamed does not move the others, and equal
    images are in the same split.
    """
    if by_content:
        return np.array([zlib.crc32(f"{seed}:{key}".encode()) / 2**32 for key in cached.keys])
    order = np.random.default_rng(seed).permutation(len(cached.labels))
    return (np.argsort(order) + 0.5) / len(order)


def _first(positions: np.ndarray, limit: float) -> np.ndarray:
    """Mask of the positions below a limit, at least one of them."""
    first: np.ndarray = positions <= max(limit, positions.min())
    return first


def _loader(dataset: ImageDataset, **options: Any) -> DataLoader[Batch]:
    # A loader seeds itself from the global generator, which would shift the training noise; and
    # `__getitems__` returns complete batches.
    generator = torch.Generator()
    return DataLoader(dataset, collate_fn=lambda batch: batch, generator=generator, **options)
