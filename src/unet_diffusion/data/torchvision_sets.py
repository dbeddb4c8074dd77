"""Datasets that torchvision downloads and reads."""

from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets

from unet_diffusion.data.sources import ArraySplit, ImageSource, RawSplit, SplitName
from unet_diffusion.errors import UserError


class _TorchvisionSource(ImageSource):
    dataset: Any
    title: str

    def fingerprint(self, split: SplitName, root: Path | None) -> str:
        return "1"  # torchvision checks the files against fixed checksums, so their content never changes

    def open(self, split: SplitName, root: Path | None) -> RawSplit:
        if root is None:
            raise UserError(f"{self.title} needs a folder: name by data.root=... where it is or may be downloaded to")
        try:
            found = self.dataset(str(root), train=split == "train", download=True)
        except (OSError, RuntimeError, EOFError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{self.title} is not in data.root={root} and its download failed ({reason}): try again with a network "
                f"connection, or copy torchvision's folder of it there from another machine"
            ) from error
        names = tuple(name.split(" - ")[0] for name in found.classes)
        return ArraySplit(np.asarray(found.data), np.asarray(found.targets), names)


class MNIST(_TorchvisionSource):
    """Handwritten digits (LeCun et al. 1998): 60,000 training and 10,000 test images, 28 x 28 grey."""

    name = "mnist"
    title = "MNIST"
    dataset = datasets.MNIST


class CIFAR10(_TorchvisionSource):
    """Small photographs of ten classes (Krizhevsky 2009): 50,000 training and 10,000 test images, 32 x 32 colour."""

    name = "cifar10"
    title = "CIFAR-10"
    dataset = datasets.CIFAR10
