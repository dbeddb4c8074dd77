"""Datasets that torchvision downloads and reads."""

from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets

from unet_diffusion.data.sources import ArraySplit, ImageSource, RawSplit, SplitName, file_stamp
from unet_diffusion.errors import UserError, first_line
from unet_diffusion.locks import one_at_a_time


class _TorchvisionSource(ImageSource):
    dataset: Any
    folder: str
    """Where below the root torchvision keeps the files that it reads."""
    title: str

    def fingerprint(self, split: SplitName, root: Path | None) -> str:
        if root is None:
            return ""
        with one_at_a_time(root):  # what another process has begun to download is not to be taken for whole
            if not self._files(root):
                self._found(split, root)  # downloads it
            return "-".join(map(file_stamp, self._files(root)))

    def open(self, split: SplitName, root: Path | None) -> RawSplit:
        found = self._found(split, root)
        names = tuple(name.split(" - ")[0] for name in found.classes)
        return ArraySplit(np.asarray(found.data), np.asarray(found.targets), names)

    def _files(self, root: Path) -> list[Path]:
        return sorted(path for path in (root / self.folder).glob("*") if path.is_file())

    def _found(self, split: SplitName, root: Path | None) -> Any:
        if root is None:
            raise UserError(f"{self.title} needs a folder: name by data.root=... where it is or may be downloaded to")
        try:
            return self.dataset(str(root), train=split == "train", download=True)
        except (OSError, RuntimeError, EOFError, ValueError) as error:
            raise UserError(
                f"{self.title} is not in data.root={root} and its download failed ({first_line(error)}): "
                f"try again with a network connection, or copy torchvision's folder of it there from another machine"
            ) from error


class MNIST(_TorchvisionSource):
    """Handwritten digits (LeCun et al. 1998): 60,000 training and 10,000 test images, 28 x 28 grey."""

    name = "mnist"
    title = "MNIST"
    dataset = datasets.MNIST
    folder = "MNIST/raw"


class CIFAR10(_TorchvisionSource):
    """Small photographs of ten classes (Krizhevsky 2009): 50,000 training and 10,000 test images, 32 x 32 colour."""

    name = "cifar10"
    title = "CIFAR-10"
    dataset = datasets.CIFAR10
    folder = "cifar-10-batches-py"
