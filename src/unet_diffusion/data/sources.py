"""Image sources: the datasets before resizing."""

import gzip
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torchvision import datasets

SplitName = Literal["train", "test"]


@dataclass(frozen=True)
class RawSplit:
    """One split before resizing."""

    images: np.ndarray | Sequence[Path]  # uint8 (N, H, W) or (N, H, W, C), or image files
    labels: np.ndarray  # (N,) class labels, -1 for images without a class
    class_names: tuple[str, ...] = ()  # empty for a dataset without classes


class ImageSource(ABC):
    """A dataset. Some have a test split, others only training images."""

    name: str  # for cache folders: letters, digits, `-` and `_`

    @abstractmethod
    def fingerprint(self, split: SplitName, root: Path | None) -> str | None:
        """A string that changes with the images of the split; None if there is no such split."""

    @abstractmethod
    def load(self, split: SplitName, root: Path | None) -> RawSplit:
        """The images and labels of the split."""


class FashionMNISTMini(ImageSource):
    """The first 5,000 training and 1,000 test images of Fashion-MNIST, part of the package.

    Xiao, Rasul and Vollgraf 2017, Zalando Research, MIT licence.
    """

    name = "fashion_mnist_mini"

    def fingerprint(self, split: SplitName, root: Path | None) -> str:
        return "1"

    def load(self, split: SplitName, root: Path | None) -> RawSplit:
        file = resources.files("unet_diffusion.data").joinpath("fashion_mnist_mini.npz")
        with file.open("rb") as stream, np.load(stream) as arrays:
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        class_names = _class_names(datasets.FashionMNIST.classes)
        return RawSplit(images, labels.astype(np.int64), class_names)


class TorchvisionSource(ImageSource):
    """A dataset that torchvision reads from `root`, after downloading it there if needed.

    Args:
        dataset: class in torchvision.datasets.
        system_root: folder with the dataset's gzipped files, which are used instead of a download.
    """

    def __init__(
        self, dataset: Literal["FashionMNIST", "MNIST", "CIFAR10"], system_root: str | None = None
    ) -> None:
        self.name = {"FashionMNIST": "fashion_mnist"}.get(dataset, dataset.lower())
        self.dataset = dataset
        self.system_root = None if system_root is None else Path(system_root)

    def fingerprint(self, split: SplitName, root: Path | None) -> str:
        self._load(split, root)
        assert root is not None
        folder = "cifar-10-batches-py" if self.dataset == "CIFAR10" else f"{self.dataset}/raw"
        stats = [file.stat() for file in sorted((root / folder).iterdir()) if file.is_file()]
        return "-".join(f"{stat.st_size}-{stat.st_mtime_ns}" for stat in stats)

    def load(self, split: SplitName, root: Path | None) -> RawSplit:
        loaded = self._load(split, root)
        labels = np.asarray(loaded.targets, dtype=np.int64)
        return RawSplit(np.asarray(loaded.data), labels, _class_names(loaded.classes))

    def _load(self, split: SplitName, root: Path | None) -> Any:
        if root is None:
            raise ValueError(f"data={self.name}: set data.root to a folder for the dataset.")
        for file in self.system_root.glob("*-ubyte.gz") if self.system_root else ():
            target = root / self.dataset / "raw" / file.stem
            if not target.exists():
                print(f"data={self.name}: decompressing {file} to {target}.")
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary = target.with_suffix(".tmp")
                temporary.write_bytes(gzip.decompress(file.read_bytes()))
                temporary.replace(target)
        try:
            dataset = getattr(datasets, self.dataset)
            return dataset(str(root), train=split == "train", download=True)
        except (OSError, RuntimeError, EOFError, ValueError) as error:
            package = ", run `apt-get install dataset-fashion-mnist`" if self.system_root else ""
            raise ValueError(
                f"data={self.name}: not in data.root={root}, and the download failed ({error}). "
                f"Use a network connection{package}, or copy torchvision's folder to data.root."
            ) from error


def _class_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Short names: `T-shirt/top` becomes `t-shirt`, `Ankle boot` ankle-boot, and `0 - zero` 0."""
    short = (name.split(" - ")[0].split("/")[0] for name in classes)
    return tuple(name.lower().replace(" ", "-") for name in short)
