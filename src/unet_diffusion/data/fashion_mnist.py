"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017; Zalando Research, MIT licence): all of it, and the excerpt in the package."""

import contextlib
from importlib import resources
from pathlib import Path

import numpy as np
from torchvision.datasets import FashionMNIST as TorchvisionFashionMNIST

from unet_diffusion.data.idx import read_idx
from unet_diffusion.data.sources import ArraySplit, ImageSource, RawSplit, SplitName, file_stamp
from unet_diffusion.errors import UserError, first_line
from unet_diffusion.locks import one_at_a_time

CLASS_NAMES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle-boot",
)
_PREFIX: dict[SplitName, str] = {"train": "train", "test": "t10k"}


class FashionMNISTMini(ImageSource):
    """The first 5,000 training and 1,000 test images, 28 x 28 grey; they come with the package and need no `root`."""

    name = "fashion_mnist_mini"

    def fingerprint(self, split: SplitName, root: Path | None) -> str:
        return "1"  # the excerpt never changes; a new one would get a new number

    def open(self, split: SplitName, root: Path | None) -> RawSplit:
        file = resources.files("unet_diffusion.data").joinpath("fashion_mnist_mini.npz")
        try:
            with file.open("rb") as stream, np.load(stream) as arrays:
                return ArraySplit(arrays[f"{split}_images"], arrays[f"{split}_labels"], CLASS_NAMES)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"the images in the package ({file}) are missing or damaged: install the package again") from error


class FashionMNIST(ImageSource):
    """All 60,000 training and 10,000 test images, 28 x 28 grey.

    Looked for in `root` (the IDX files themselves, gzipped or plain, or torchvision's layout), then in the system's copy, then
    downloaded into `root` by torchvision.

    Args:
        system_root: where the Debian and Ubuntu package `dataset-fashion-mnist` puts the files.
    """

    name = "fashion_mnist"

    def __init__(self, system_root: str = "/usr/share/datasets/fashion-mnist") -> None:
        self.system_root = Path(system_root)

    def fingerprint(self, split: SplitName, root: Path | None) -> str:
        files = self._files(split, root)
        if split == "train":
            print(f"Fashion-MNIST is read from {files[0].parent}")
        return "-".join(map(file_stamp, files))

    def open(self, split: SplitName, root: Path | None) -> RawSplit:
        image_file, label_file = self._files(split, root)
        images, labels = read_idx(image_file), read_idx(label_file)
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise UserError(f"{image_file} and {label_file} do not belong together: fetch both again")
        return ArraySplit(images, labels, CLASS_NAMES)

    def _files(self, split: SplitName, root: Path | None) -> tuple[Path, Path]:
        if root is None:
            found = _find(split, [self.system_root])
        else:
            with one_at_a_time(root):  # what another process has begun to download is not to be taken for whole
                found = self._files_in(split, root)
        if found is None:
            raise UserError(
                f"Fashion-MNIST is not in {self.system_root}: name a folder by data.root=... that holds its four IDX files or "
                f"that it may be downloaded into, or run `apt-get install dataset-fashion-mnist`"
            )
        return found

    def _files_in(self, split: SplitName, root: Path) -> tuple[Path, Path] | None:
        folders = [root, root / "FashionMNIST" / "raw", self.system_root]
        found = _find(split, folders)
        if found is None:
            try:
                TorchvisionFashionMNIST(str(root), download=True)
            except (OSError, RuntimeError) as error:
                for folder in (folders[1], folders[1].parent, root):
                    with contextlib.suppress(OSError):
                        folder.rmdir()  # made for the download; only where it is empty
                raise UserError(
                    f"Fashion-MNIST is neither in data.root={root} nor in {self.system_root}, and its download failed "
                    f"({first_line(error)}): put its four IDX files into {root}, or run `apt-get install "
                    f"dataset-fashion-mnist`, or try again with a network connection"
                ) from error
            found = _find(split, folders)
        return found


def _find(split: SplitName, folders: list[Path]) -> tuple[Path, Path] | None:
    prefix = _PREFIX[split]
    for folder in folders:
        for ending in ("", ".gz"):
            pair = (folder / f"{prefix}-images-idx3-ubyte{ending}", folder / f"{prefix}-labels-idx1-ubyte{ending}")
            if all(path.is_file() for path in pair):
                return pair
    return None
