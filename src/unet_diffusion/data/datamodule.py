"""The data module: splits, and batches made by one gather from the cached array."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from unet_diffusion.checks import fraction, image_size_of, seed_number, shortened, whole_number
from unet_diffusion.data.cache import CachedSplit, OnUnreadable, cached_split
from unet_diffusion.data.sources import ImageSource, SplitName
from unet_diffusion.errors import UserError
from unet_diffusion.images import to_float
from unet_diffusion.paths import named_path
from unet_diffusion.shares import Share


class Batch(NamedTuple):
    """What a loader yields."""

    x0: Tensor
    """Clean images in [-1, 1], (B, C, H, W) float."""
    label: Tensor
    """Class numbers, (B,) int64; -1 where the dataset has none."""
    number: Tensor
    """Each image's place in its split, (B,) int64; noise that must not change from run to run is drawn by it."""


class ImageBatches(Dataset[Batch]):
    """Images of one split; the loader asks for a whole batch at once.

    Args:
        cached: the array that the split is in.
        rows: which of its images belong to this split.
        flip: mirror each image left to right with probability 1/2.
    """

    def __init__(self, cached: CachedSplit, rows: np.ndarray, flip: bool = False) -> None:
        self.cached = cached
        self.rows = rows
        self.flip = flip
        self.share = Share()
        self._kept: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_bytes(self) -> int:
        """What the images take in memory."""
        return len(self.rows) * int(np.prod(self.cached.images.shape[1:]))

    def keep_on(self, device: torch.device) -> None:
        """Copies the images (as bytes) and labels to a device; batches then come from there."""
        images = torch.from_numpy(self.cached.read(self.rows)).permute(0, 3, 1, 2).contiguous()
        self._kept = images.to(device), torch.from_numpy(self.cached.labels[self.rows]).to(device)

    def __getitems__(self, numbers: Sequence[int]) -> Batch:
        """The images at these places in the split, as one batch."""
        number = torch.as_tensor(numbers, dtype=torch.int64)
        if self._kept is not None:
            images, labels = self._kept
            number = number.to(images.device)
            stored, label = images[number], labels[number]
        else:
            rows = self.rows[number.numpy()]
            stored = torch.from_numpy(self.cached.read(rows)).permute(0, 3, 1, 2).contiguous()
            label = torch.from_numpy(self.cached.labels[rows])
        x0 = to_float(stored)
        if self.flip:
            # drawn on the CPU, so that a seed means the same everywhere, and for the images of all processes (see Share)
            mirrored = self.share.of(torch.rand(len(x0) * self.share.processes)).to(x0.device) < 0.5
            x0 = torch.where(mirrored[:, None, None, None], x0.flip(-1), x0)
        return Batch(x0, label, number)


class TrainingOrder(DistributedSampler[Batch]):
    """Shuffled places in the training split, by the seed and the epoch alone; can begin within an epoch."""

    def __init__(self, images: ImageBatches, share: Share, seed: int) -> None:
        super().__init__(images, share.processes, share.rank, shuffle=True, seed=seed, drop_last=True)
        self.skip = 0
        """Images to leave out at the beginning of the next pass: a training that goes on has seen them."""

    def __iter__(self) -> Iterator[Any]:
        seen, self.skip = self.skip, 0
        return itertools.islice(super().__iter__(), seen, None)


class ResumableLoader(DataLoader[Batch]):
    """A loader that goes on within an epoch; Lightning keeps its state in the checkpoint.

    Args:
        images: what to load.
        order: their order.
        batch_size: images a batch; the last, smaller one is left out.
        batches_done: says how many batches of the present epoch training has done.
    """

    def __init__(self, images: ImageBatches, order: TrainingOrder, batch_size: int, batches_done: Callable[[], int]) -> None:
        super().__init__(images, batch_size, sampler=order, drop_last=True, **_always())
        self._order = order
        self._batches_done = batches_done

    def state_dict(self) -> dict[str, int]:
        """Not what was loaded, which may be further on than the training."""
        return {"batches_done": self._batches_done()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        assert self.batch_size is not None
        self._order.skip = state_dict["batches_done"] * self.batch_size


class ImageDataModule(L.LightningDataModule):
    """Resized images from any source, in three splits that never share an image.

    Test is the dataset's own test split; where it has none, it is cut from the training images. Validation is always cut from
    the training images. Both cuts depend on `split_seed` alone.

    Args:
        source: which images.
        image_size: pixels; one number for a square, or [height, width].
        channels: 1 (grey) or 3 (colour).
        batch_size: images a training step and process.
        cache_dir: folder for the resized images.
        root: folder that the source looks in (and downloads to); None for a source that needs none.
        flip: mirror training images left to right with probability 1/2.
        val_fraction: share of the training images kept for validation, in (0, 1).
        test_fraction: share of the images kept for the test where the dataset has no test split, in (0, 1).
        split_seed: seed of the cuts, 0 or more.
        seed: seed of the training order, 0 or more.
        on_unreadable: `stop` at images that cannot be decoded, or `skip` and count them.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        source: ImageSource,
        image_size: int | Sequence[int],
        channels: int,
        batch_size: int,
        cache_dir: str,
        root: str | None = None,
        flip: bool = False,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        seed: int = 0,
        on_unreadable: OnUnreadable = "stop",
    ) -> None:
        super().__init__()
        if not isinstance(source, ImageSource):
            raise ValueError(f"source={shortened(source)} is no source of images: leave it as data= sets it")
        if channels not in (1, 3):
            raise ValueError(f"channels={shortened(channels)} must be 1 (grey) or 3 (colour)")
        if on_unreadable not in ("stop", "skip"):
            raise ValueError(f"on_unreadable={shortened(on_unreadable)} must be stop or skip")
        if not isinstance(flip, bool):
            raise ValueError(f"flip={shortened(flip)} must be true or false")
        for name, share in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            if not 0 < fraction(name, share) < 1:
                raise ValueError(f"{name}={shortened(share)} must lie between 0 and 1 and be neither")
        self.source = source
        self.image_size = image_size_of(image_size)
        self.channels = channels
        self.batch_size = whole_number("batch_size", batch_size, at_least=1)
        self.cache_dir = named_path("data.cache_dir", cache_dir)
        self.root = None if root is None else named_path("data.root", root)
        self.flip = flip
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.split_seed = whole_number("split_seed", split_seed, at_least=0)
        self.seed = seed_number("seed", seed)
        self.on_unreadable: OnUnreadable = on_unreadable
        self.class_names: tuple[str, ...] = ()
        self.splits: dict[str, ImageBatches] = {}

    def setup(self, stage: str | None = None) -> None:
        """Opens (and where needed makes) the cache and cuts the splits; all of it only once.

        Raises:
            UserError: no images, unreadable ones, or fewer than a batch.
        """
        if self.splits:
            return
        train = self._cached("train")
        if train is None:
            raise UserError(f"data.root={self.root} holds no training images")
        test = self._cached("test")
        rows = np.random.default_rng(self.split_seed).permutation(len(train.images))
        if test is None:
            test_rows, rows = _cut(rows, self.test_fraction)
        else:
            test_rows = np.arange(len(test.images))
        val_rows, train_rows = _cut(rows, self.val_fraction)
        for cached, what in ((train, "training"), (test, "test")):
            if cached is not None and cached.left_out:
                print(f"{cached.left_out} {what} image files cannot be read and are left out (data.on_unreadable=skip)")
        if not len(train_rows):
            raise UserError(
                f"data: of {len(train.images)} images, data.val_fraction={self.val_fraction} (and data.test_fraction="
                f"{self.test_fraction}, where the dataset has no test split) leave none to train on: lower them or add images"
            )
        if len(train_rows) < self.batch_size:
            raise UserError(
                f"data.batch_size={self.batch_size} is larger than the {len(train_rows)} training images (beside "
                f"{len(val_rows)} for validation and {len(test_rows)} for the test): "
                f"try data.batch_size={max(1, len(train_rows) // 2)}"
            )
        self.class_names = train.class_names
        self.splits = {
            "train": ImageBatches(train, train_rows, flip=self.flip),
            "val": ImageBatches(train, val_rows),
            "test": ImageBatches(test or train, test_rows),
        }

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches in an order that depends on the seed and the epoch alone; the last, smaller one is left out.

        Of several processes each sees other images, and their batches together are what one process would see at once.
        """
        split, share = self.splits["train"], self._share()
        split.share = share
        # DistributedSampler also with one process: its order is a function of (seed, epoch), the same on every machine
        order = TrainingOrder(split, share, self.seed)
        return ResumableLoader(split, order, self.batch_size, self._batches_done)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._evaluation_loader("test")

    def _evaluation_loader(self, split: str) -> DataLoader[Batch]:
        """Each image once over all processes (DistributedSampler would fill up with repeated ones, which count twice).

        All processes get as many batches, as they wait for each other at each; the last one of some may be empty.
        """
        images, share = self.splits[split], self._share()
        own = range(share.rank, len(images), share.processes)
        starts = range(0, -(-len(images) // share.processes), self.batch_size)
        batches = [list(own[start : start + self.batch_size]) for start in starts]
        return DataLoader(images, batch_sampler=batches, **_always())

    def _batches_done(self) -> int:
        """How many batches training has done of the epoch that it is in."""
        if self.trainer is None:
            return 0
        done: int = self.trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
        return done % int(self.trainer.num_training_batches)

    def _share(self) -> Share:
        return Share() if self.trainer is None else Share(self.trainer.world_size, self.trainer.global_rank)

    def _cached(self, split: SplitName) -> CachedSplit | None:
        return cached_split(self.source, split, self.root, self.image_size, self.channels, self.cache_dir, self.on_unreadable)


def _cut(rows: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """The first `share` of the rows (at least one) and the rest, each in rising order."""
    count = max(1, round(share * len(rows)))
    return np.sort(rows[:count]), np.sort(rows[count:])


def _always() -> dict[str, Any]:
    """Of every loader."""
    # a loader draws a number whenever it starts; from a generator of its own, so that no validation shifts the training
    return {"collate_fn": _as_it_is, "generator": torch.Generator()}


def _as_it_is(batch: Any) -> Any:
    """The batch is whole already; it only looks to the loader like a list of images."""
    return batch
